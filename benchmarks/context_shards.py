"""A long prompt with its keys and values on context shards, against none: the same logits, the same tokens.

Each run reads the same prompt of a random model in steps of 2048 tokens, keeps the logits after every step, and then
generates greedily, in float32: with all keys and values in the router, and with those of global layers on one, two and
four shard processes. Then a shard is killed with SIGKILL while an engine generates behind a long prompt: the tokens
must be the same, and what is computed again must be what that shard held.

    python benchmarks/context_shards.py
    python benchmarks/context_shards.py --tokens 20000 --kill-tokens 10000
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks.context_processes import ContextProcess, open_shards
from benchmarks.environment import RESULTS, describe_environment
from benchmarks.random_llama4 import RandomLlama4, write_random_llama4
from experts.weights import ExpertWeights
from models.checkpoint import Checkpoint, open_checkpoint
from models.llama4.decoder import load_decoder
from router.batch import Batch, Span
from router.context_shards.shards import ContextShards
from router.engine import Engine
from router.forward import Forward
from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import KvStorage
from router.limits import EngineLimits
from router.paging.paged_kv import PagedKv, PagingPlan
from router.request import Ended, GenerationRequest, SamplingParams, TokenChosen
from router.transport.local import LocalTransport

MODEL = RandomLlama4(layers=8, hidden=128, heads=4, kv_heads=2, head_size=32, experts=4, expert_width=256, vocab=4096)
CHUNK = MODEL.attention_chunk
STEP_TOKENS = 2048
MOST_DIFFERENCE = 1e-4
NEW_TOKENS = 16
KILLED_TOKENS = 48
KILL_AFTER = 8
"""Tokens that the stream has when its shard is killed."""
_WAIT_S = 600.0


def main() -> int:
    """Compare, print and write the result; return 1 if something differs."""
    options = _parse()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        write_random_llama4(Path(folder), MODEL)
        checkpoint = open_checkpoint(Path(folder))
        alone, tokens = _read(_forward(checkpoint), _prompt(options.tokens))
        runs = [_compare(checkpoint, number, options.tokens, alone, tokens) for number in options.shards]
        killed = _kill_one(checkpoint, options.kill_tokens)
    result = {
        "environment": describe_environment("torch", "grpcio"),
        "tokens": options.tokens,
        "runs": runs,
        "killed": killed,
    }
    is_good = all(run["largest_difference"] <= MOST_DIFFERENCE and run["tokens_equal"] for run in runs) and (
        killed["tokens_equal"] and killed["repaired_tokens"] == killed["held_tokens"]
    )
    print(json.dumps(result, indent=1))
    print(f"logits within {MOST_DIFFERENCE:g}, tokens equal, nothing else computed again: {is_good}")
    if options.name:
        (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if is_good else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=60_000, help="of the prompt (60,000)")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4], help="numbers of shards (1 2 4)")
    parser.add_argument(
        "--kill-tokens", type=int, default=32_768, help="prompt of the stream whose shard dies (32,768)"
    )
    parser.add_argument("--name", default="context_shards", help="of the file under benchmarks/results; empty: none")
    return parser.parse_args()


def _prompt(num_tokens: int) -> list[int]:
    dice = random.Random(num_tokens)
    return [dice.randrange(3, MODEL.vocab) for _ in range(num_tokens)]


def _forward(checkpoint: Checkpoint, shards: ContextShards | None = None) -> Forward:
    weights = ExpertWeights.load(checkpoint, range(MODEL.experts), torch.float32)
    return Forward(load_decoder(checkpoint, dtype=torch.float32), LocalTransport(weights.run), shards)


def _kv_bytes(checkpoint: Checkpoint, num_tokens: int) -> int:
    """Return memory for all of a prompt, and as much again, so that any shard can take over."""
    return 2 * num_tokens * CacheLayout(checkpoint.config, "float32").global_token_bytes


def _compare(
    checkpoint: Checkpoint, number: int, num_tokens: int, alone: Tensor, tokens: Sequence[int]
) -> dict[str, Any]:
    """Return how a run over shards differs from one without."""
    started_s = time.perf_counter()
    with open_shards(checkpoint, number, _kv_bytes(checkpoint, num_tokens)) as (shards, _):
        found, chosen = _read(_forward(checkpoint, shards), _prompt(num_tokens))
    run = {
        "shards": number,
        "largest_difference": (found - alone).abs().max().item(),
        "tokens_equal": chosen == list(tokens),
        "seconds": round(time.perf_counter() - started_s, 1),
    }
    print(run, flush=True)
    return run


def _read(forward: Forward, prompt: Sequence[int]) -> tuple[Tensor, list[int]]:
    """Return the logits [steps, V] after every step of the prompt and of what is generated, and the tokens."""
    layout = CacheLayout(forward.decoder.config, "float32")
    num_pages = -(-(len(prompt) + NEW_TOKENS) // layout.page_tokens)
    has_global = forward.shards is None
    plan = PagingPlan(layout.page_tokens, layout.chunk, has_global, num_pages if has_global else 0, num_pages)
    kv, storage = PagedKv(plan), KvStorage(layout, plan, torch.float32, torch.device("cpu"))
    ids = list(prompt)
    pages = kv.admit(ids, expect_tokens=len(ids) + NEW_TOKENS, use_cached=False)
    segments = forward.shards.promise(len(ids) + NEW_TOKENS) if forward.shards else None
    rows: list[Tensor] = []
    start, told_s = 0, time.monotonic()
    while len(ids) - len(prompt) < NEW_TOKENS:
        stop = min(start + STEP_TOKENS, len(ids), start - start % CHUNK + CHUNK)
        kv.grow(pages, stop - start)
        if segments is not None:
            assert forward.shards is not None
            assert forward.shards.extend(segments, stop)
        span = Span(pages, start, ids[start:stop], segments=segments)
        rows.append(forward([Batch.of([span], layout, torch.device("cpu"))], storage))
        kv.advance(pages, ids, stop - start, publish=False)
        if segments is not None:
            segments.num_tokens = stop
        start = stop
        if start == len(ids):
            ids.append(int(rows[-1].argmax()))
        if time.monotonic() - told_s > 10:
            told_s = time.monotonic()
            print(f"{start} of {len(prompt)} tokens", flush=True)
    if segments is not None:
        assert forward.shards is not None
        forward.shards.release(segments)
    return torch.cat(rows), ids[len(prompt) :]


def _kill_one(checkpoint: Checkpoint, num_tokens: int) -> dict[str, Any]:
    """Kill one of three shards in mid-decode; return what became of the stream."""
    prompt, kv_bytes = _prompt(num_tokens), _kv_bytes(checkpoint, num_tokens)
    with open_shards(checkpoint, 3, kv_bytes) as (shards, _):
        expected, _, _ = _generate(checkpoint, shards, prompt, None)
    with open_shards(checkpoint, 3, kv_bytes) as (shards, processes):
        found, held, repaired = _generate(checkpoint, shards, prompt, processes[0])
    result = {
        "tokens": num_tokens,
        "tokens_equal": found == expected,
        "held_tokens": held,
        "repaired_tokens": repaired,
    }
    print(result, flush=True)
    return result


def _generate(
    checkpoint: Checkpoint, shards: ContextShards, prompt: Sequence[int], victim: ContextProcess | None
) -> tuple[list[int], int, int]:
    """Return the tokens generated, how many of the sequence the victim held, and how many were computed again."""
    forward = _forward(checkpoint)
    layout = CacheLayout(checkpoint.config, "float32")
    limits = EngineLimits(
        context_length=len(prompt) + KILLED_TOKENS,
        kv_bytes=layout.pages_bytes(0, 4 * CHUNK // layout.page_tokens),
        step_tokens=STEP_TOKENS,
        on_shards=True,
    )
    engine = Engine(forward.decoder, forward.transport, limits, shards)
    engine.start()
    events: queue.Queue[Any] = queue.Queue()
    request = GenerationRequest(
        request_id="one", prompt_ids=tuple(prompt), max_tokens=KILLED_TOKENS, sampling=SamplingParams(temperature=0.0)
    )
    engine.submit(request, events.put)
    tokens: list[int] = []
    held = 0
    while not isinstance(event := events.get(timeout=_WAIT_S), Ended):
        if not isinstance(event, TokenChosen):
            continue
        tokens.append(event.token_id)
        if victim is not None and len(tokens) == KILL_AFTER:
            victim.kill()
    if event.error is not None:
        raise SystemExit(f"expected the stream to end well, found {event.error.message}")
    held = shards.num_lost_tokens
    repaired = engine.load().repaired_tokens
    engine.stop()
    return tokens, held, repaired


if __name__ == "__main__":
    sys.exit(main())
