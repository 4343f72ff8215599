"""What storing keys and values in fewer bytes (`router.kv_dtype`) costs the demo model on text it has not seen.

As `benchmarks/quantization.py` does for weights: each window of 512 tokens is read as a prompt by the engine that
serves. Besides, the engine continues the first half of each window greedily, as it does for users: one token that turns
changes all that follow, so two good caches may part soon.

    python -m benchmarks.kv_quantization
"""

from __future__ import annotations

import argparse
import json
import queue
from pathlib import Path

import torch

from benchmarks.environment import RESULTS, describe_environment
from benchmarks.quantization import FOLDER, HELD_OUT, Variant, compare, cut, read, running
from examples.train_demo.corpus import read_texts
from examples.train_demo.evaluation import WINDOW
from examples.train_demo.vocabulary import load_vocabulary
from models.checkpoint import Checkpoint, open_checkpoint
from router.engine import Engine
from router.kv_cache.layout import CacheLayout, KvDtype
from router.request import Ended, GenerationRequest, SamplingParams, TokenChosen

KV_DTYPES: tuple[KvDtype, ...] = ("float32", "bfloat16", "int8", "fp8")
ANSWER = 64
_ANSWER_S = 120.0
_PREAMBLE = f"""# What storing keys and values in fewer bytes costs

Written by `benchmarks/kv_quantization.py`: the demo model in float32, read through the engine, with keys and values
stored as `router.kv_dtype` says. "Change" is perplexity against float32's, with the standard error of the mean
difference per token; one of less than two standard errors may be chance. "Same token" is how often the likeliest next
token of the text is float32's. "Same answer" is of free greedy continuations of {ANSWER} tokens: how many are equal to
float32's, and how many of their tokens are up to where they part.
"""


def main() -> None:
    """Measure all dtypes and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=FOLDER, help="folder of the demo model (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    environment, checkpoint = describe_environment("torch"), open_checkpoint(arguments.model)
    vocabulary, texts = load_vocabulary(arguments.model / "tokenizer.model"), read_texts()
    documents = {HELD_OUT: list(texts.held_out.values()), "Text it was trained on": list(texts.training.values())[::50]}
    parts, results = [_PREAMBLE], {}
    for name, chosen in documents.items():
        windows = cut(chosen, vocabulary)
        rows = measure(checkpoint, windows)
        parts.append(f"## {name}: {sum(len(window) - 1 for window in windows):,} tokens\n\n{as_table(rows)}\n")
        results[name] = rows
    parts.append("\n".join(f"- {name}: {value}" for name, value in environment.items()) + "\n")
    page = "\n".join(parts)
    print(page)
    (RESULTS / "kv_quantization.md").write_text(page)
    (RESULTS / "kv_quantization.json").write_text(json.dumps({"environment": environment, **results}, indent=2) + "\n")


def measure(checkpoint: Checkpoint, windows: list[list[int]]) -> list[dict[str, object]]:
    """Return a row of figures for each dtype, against the first."""
    variants = {kv_dtype: Variant(torch.float32, None, kv_dtype) for kv_dtype in KV_DTYPES}
    rows = compare({variant: read(checkpoint, variant, windows) for variant in variants.values()})
    prompts = [window[: WINDOW // 2] for window in windows if len(window) > WINDOW // 2]
    answers = {kv_dtype: _answers(checkpoint, variant, prompts) for kv_dtype, variant in variants.items()}
    base = answers[KV_DTYPES[0]]
    for row, kv_dtype in zip(rows, KV_DTYPES, strict=True):
        kept = [_num_common(answer, other) for answer, other in zip(answers[kv_dtype], base, strict=True)]
        row |= {
            "kv_dtype": kv_dtype,
            "bytes_per_token_layer": CacheLayout(checkpoint.config, kv_dtype).bytes_per_token_layer,
            "num_answers": len(kept),
            "same_answer_percent": 100 * sum(common == ANSWER for common in kept) / len(kept),
            "same_until_percent": 100 * sum(kept) / (len(kept) * ANSWER),
        }
    return rows


def _answers(checkpoint: Checkpoint, variant: Variant, prompts: list[list[int]]) -> list[list[int]]:
    with running(checkpoint, variant) as (engine, _):
        return [_answer(engine, prompt) for prompt in prompts]


def _answer(engine: Engine, prompt: list[int]) -> list[int]:
    """Return a greedy continuation."""
    events: queue.Queue[object] = queue.Queue()
    greedy = SamplingParams(temperature=0.0)
    request = GenerationRequest(request_id="answer", prompt_ids=tuple(prompt), max_tokens=ANSWER, sampling=greedy)
    engine.submit(request, events.put)
    found: list[int] = []
    while not isinstance(event := events.get(timeout=_ANSWER_S), Ended):
        if isinstance(event, TokenChosen):
            found.append(event.token_id)
    if event.error is not None:
        raise event.error
    return found


def _num_common(answer: list[int], other: list[int]) -> int:
    """Return how many tokens two answers share from their beginning."""
    return next((index for index, pair in enumerate(zip(answer, other, strict=True)) if pair[0] != pair[1]), ANSWER)


def as_table(rows: list[dict[str, object]]) -> str:
    """Return the rows in Markdown."""
    lines = [
        "| kv_dtype | bytes per token, layer | perplexity | change | same token | same answer | same until they part |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row['kv_dtype']} | {row['bytes_per_token_layer']} | {row['perplexity']:.2f} "
        f"| {row['change_percent']:+.2f} % ± {row['standard_error_percent']:.2f} | {row['same_token_percent']:.1f} % "
        f"| {row['same_answer_percent']:.0f} % | {row['same_until_percent']:.0f} % |"
        for row in rows
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
