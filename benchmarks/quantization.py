"""What rounding weights costs the demo model on text it has not seen, through the engine that serves it.

The goal: perplexity at most 0.5 % above full precision's with int8, at most 3 % with int4. The text is the
documentation that `examples/train_demo` held out, in windows of 512 tokens, each from position 0; an engine reads each
as a prompt and tells the probability of every token. Differences are token by token, on the same text.

    python -m benchmarks.quantization
"""

from __future__ import annotations

import argparse
import json
import math
import queue
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from tiktoken import Encoding
from torch import Tensor

from benchmarks.environment import RESULTS, ROOT, describe_environment
from examples.train_demo.corpus import encode_stream, read_texts
from examples.train_demo.evaluation import WINDOW
from examples.train_demo.vocabulary import load_vocabulary
from experts.weights import ExpertWeights
from models.checkpoint import Checkpoint, open_checkpoint
from models.linear import Quantization
from models.llama4.decoder import load_decoder
from router.engine import Engine
from router.kv_cache.layout import KvDtype
from router.limits import EngineLimits
from router.request import Ended, GenerationRequest, PromptDone
from router.transport.local import LocalTransport

FOLDER = ROOT / "models" / "demo"
GOALS = {"int8": 0.5, "int4": 3.0}
"""Most percent of perplexity that rounding may cost."""
HELD_OUT = "Held-out text"
_ANSWER_S = 120.0
_PREAMBLE = f"""# What rounding weights costs in perplexity

Written by `benchmarks/quantization.py`: the demo model, read through the engine. Every matrix is rounded but the
embeddings and the gates; norms stay as well, and the LM head has 8 bits with int4, too. "Change" is perplexity against
float32's, with the standard error of the mean difference per token; one of less than two standard errors may be chance.
"Same token" is how often the likeliest next token is float32's. Goals, on held-out text: int8 at most
{GOALS["int8"]} %, int4 at most {GOALS["int4"]} %.

The model recites what it was trained on, with perplexity 2.6, and predicts little of what it was not: what rounding
costs a text depends on how sure the model is of it.
"""


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to hold and compute the model."""

    dtype: torch.dtype
    quantize: Quantization | None
    kv_dtype: KvDtype | None = None
    """What keys and values are stored in; None: as they are computed."""

    @property
    def name(self) -> str:
        """For example "int8, rest float32"."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.quantize}, rest {dtype}" if self.quantize else dtype


@dataclass(frozen=True, slots=True)
class Reading:
    """What a variant made of the text. N is the number of tokens that are predicted."""

    weight_bytes: int
    nats_N: Tensor
    likeliest_N: Tensor


VARIANTS = tuple(
    Variant(dtype, quantize) for quantize in (None, "int8", "int4") for dtype in (torch.float32, torch.bfloat16)
)


@contextmanager
def running(checkpoint: Checkpoint, variant: Variant) -> Iterator[tuple[Engine, int]]:
    """Run an engine with one variant; yield it and the bytes of its weights."""
    decoder = load_decoder(checkpoint, dtype=variant.dtype, quantize=variant.quantize)
    experts = ExpertWeights.load(
        checkpoint, range(checkpoint.config.num_experts), variant.dtype, quantize=variant.quantize
    )
    limits = EngineLimits(context_length=2 * WINDOW, kv_bytes=2**26, kv_dtype=variant.kv_dtype, prefix_cache=False)
    engine = Engine(decoder, LocalTransport(experts.run), limits)
    engine.start()
    try:
        yield engine, decoder.weight_bytes() + experts.weight_bytes
    finally:
        engine.stop()


def read(checkpoint: Checkpoint, variant: Variant, windows: list[list[int]]) -> Reading:
    """Read windows of token ids with one variant."""
    with running(checkpoint, variant) as (engine, weight_bytes):
        tokens = [token for window in windows for token in _read_window(engine, window)]
    nats, likeliest = zip(*tokens, strict=True)
    return Reading(weight_bytes, torch.tensor(nats), torch.tensor(likeliest))


def _read_window(engine: Engine, ids: list[int]) -> list[tuple[float, int]]:
    """Return (nats, likeliest token) for every token but the first."""
    events: queue.Queue[object] = queue.Queue()
    request = GenerationRequest(request_id="window", prompt_ids=tuple(ids), max_tokens=1, prompt_logprobs=1)
    engine.submit(request, events.put)
    found: list[tuple[float, int]] = []
    while not isinstance(event := events.get(timeout=_ANSWER_S), Ended):
        if isinstance(event, PromptDone) and event.logprobs is not None:
            found = [(-each.logprob, each.top[0][0]) for each in event.logprobs[1:]]
    if event.error is not None:
        raise event.error
    return found


def compare(readings: dict[Variant, Reading]) -> list[dict[str, object]]:
    """Return a row of figures for each variant, against the first."""
    base = next(iter(readings.values()))
    rows: list[dict[str, object]] = []
    for variant, reading in readings.items():
        difference_N = (reading.nats_N - base.nats_N).double()
        nats = float(reading.nats_N.double().mean())
        rows.append(
            {
                "variant": variant.name,
                "weight_bytes": reading.weight_bytes,
                "nats_per_token": nats,
                "perplexity": math.exp(nats),
                "change_percent": 100 * math.expm1(float(difference_N.mean())),
                "standard_error_percent": 100 * float(difference_N.std()) / math.sqrt(len(difference_N)),
                "goal_percent": GOALS.get(variant.quantize or ""),
                "same_token_percent": 100 * float((reading.likeliest_N == base.likeliest_N).double().mean()),
            }
        )
    return rows


def as_table(rows: list[dict[str, object]]) -> str:
    """Return the rows in Markdown."""
    lines = ["| weights | MB | nats per token | perplexity | change | same token |", "|---|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {row['variant']} | {row['weight_bytes'] / 1e6:.1f} | {row['nats_per_token']:.4f} "
        f"| {row['perplexity']:.2f} | {row['change_percent']:+.2f} % ± {row['standard_error_percent']:.2f} "
        f"| {row['same_token_percent']:.1f} % |"
        for row in rows
    ]
    return "\n".join(lines)


def cut(documents: list[str], vocabulary: Encoding) -> list[list[int]]:
    """Return documents as windows of token ids; each begins with the last token of the one before."""
    stream = encode_stream(documents, vocabulary).tolist()
    return [stream[start : start + WINDOW + 1] for start in range(0, len(stream) - 1, WINDOW)]


def main() -> None:
    """Measure all variants and write the results."""
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
        rows = compare({variant: read(checkpoint, variant, windows) for variant in VARIANTS})
        parts.append(f"## {name}: {sum(len(window) - 1 for window in windows):,} tokens\n\n{as_table(rows)}\n")
        results[name] = rows
    parts.append("\n".join(f"- {name}: {value}" for name, value in environment.items()) + "\n")
    page = "\n".join(parts)
    print(page)
    (RESULTS / "quantization.md").write_text(page)
    (RESULTS / "quantization.json").write_text(json.dumps({"environment": environment, **results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
