"""A decode step over ten million tokens of context, on context shards filled with random keys and values.

Reading so long a prompt takes longer than anybody waits here; keys and values of any content cost a decode step the
same. So the shards fill their segments with random numbers, and then a model really generates behind them: every layer
of every step runs as it does in service. Checked are each shard's memory against bytes per token times tokens, and the
attention over all of it against a reference in float64.

    python benchmarks/synthetic_context.py
    python benchmarks/synthetic_context.py --tokens 1000000 --shards 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import grpc
import torch
from torch import Tensor

from benchmarks.context_processes import ROUTER, ContextProcess, open_shards
from benchmarks.environment import RESULTS, describe_environment
from benchmarks.random_llama4 import RandomLlama4, write_random_llama4
from context.segments import synthetic
from experts.weights import ExpertWeights
from models.checkpoint import Checkpoint, open_checkpoint
from models.llama4.decoder import load_decoder
from protos.channel import channel_options
from protos.context.v1 import context_pb2, context_pb2_grpc
from router.batch import Batch, Span
from router.context_shards.attention import ContextSpan, attend
from router.context_shards.segments import SequenceSegments
from router.context_shards.shards import ContextShards
from router.forward import Forward
from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import KvStorage
from router.paging.paged_kv import PagedKv
from router.transport.local import LocalTransport

MODEL = RandomLlama4(
    layers=8,
    hidden=256,
    heads=8,
    kv_heads=2,
    head_size=32,
    experts=4,
    expert_width=512,
    vocab=4096,
    max_positions=2**25,
)
CHUNK = MODEL.attention_chunk
MOST_MEMORY = 0.02
MOST_ERROR = 1e-4
SHARPNESS = 6.0
"""Factor on random queries: scores then spread so far that a handful of ten million keys decides, as in a trained
model; queries without it would average all values to nothing, and any error with them."""


def main() -> int:
    """Measure, print and write the result; return 1 if something is out of bounds."""
    options = _parse()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        model = Path(folder) / "model"
        write_random_llama4(model, MODEL)
        checkpoint = open_checkpoint(model)
        num_tokens = -(-options.tokens // CHUNK) * CHUNK
        layout = CacheLayout(checkpoint.config, "float32")
        share = (-(-num_tokens // (CHUNK * options.shards)) + 2) * CHUNK * layout.global_token_bytes
        arguments = ("--synthetic", "--threads", "1")
        shards, processes = stack.enter_context(open_shards(checkpoint, options.shards, share, *arguments))
        before = [process.resident_bytes for process in processes]
        segments = shards.promise(num_tokens + options.steps)
        assert segments is not None, "the shards have room for exactly this"
        fill_s = _fill(shards, segments, processes, num_tokens)
        memory = _memory(segments, processes, before, layout.global_token_bytes)
        print("attention against float64 ...", flush=True)
        errors = _errors(shards, segments, num_tokens, checkpoint)
        print("decoding ...", flush=True)
        seconds = _decode(checkpoint, shards, segments, num_tokens, options.steps)
    result = {
        "environment": describe_environment("torch", "grpcio"),
        "tokens": num_tokens,
        "shards": options.shards,
        "bytes_per_token": layout.global_token_bytes,
        "fill_s": fill_s,
        "memory": memory,
        "largest_error_by_head": errors,
        "decode_step_s": seconds,
        "decode_step_median_s": statistics.median(seconds),
    }
    is_good = all(abs(each["over_formula"]) <= MOST_MEMORY for each in memory) and max(errors.values()) <= MOST_ERROR
    _report(result, is_good)
    if options.name:
        (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0 if is_good else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=10_000_000, help="of context, rounded up to whole chunks (10 M)")
    parser.add_argument("--shards", type=int, default=4, help="processes that hold it (4)")
    parser.add_argument("--steps", type=int, default=16, help="tokens to generate (16)")
    parser.add_argument("--name", default="synthetic_context", help="of the file under benchmarks/results; empty: none")
    return parser.parse_args()


def _fill(
    shards: ContextShards, segments: SequenceSegments, processes: Sequence[ContextProcess], num_tokens: int
) -> float:
    """Give the sequence segments full of random keys and values; return the seconds it took."""
    started_s = told_s = time.perf_counter()
    address = {process.holder.shard_id: process.holder.address for process in processes}
    with ExitStack() as stack:
        stubs = {
            shard_id: context_pb2_grpc.ContextServiceStub(
                stack.enter_context(grpc.insecure_channel(each, options=channel_options()))
            )
            for shard_id, each in address.items()
        }
        pool = stack.enter_context(ThreadPoolExecutor(len(processes)))
        assert shards.extend(segments, num_tokens)
        fills = [
            pool.submit(
                stubs[segment.shard_id].Fill,
                context_pb2.FillRequest(router_id=ROUTER, segment_id=segment.segment_id, num_tokens=CHUNK),
                timeout=600,
            )
            for segment in segments.segments
        ]
        for number, fill in enumerate(fills):
            fill.result()
            if (now_s := time.perf_counter()) - told_s > 5:
                told_s = now_s
                print(f"filled {(number + 1) * CHUNK / 1e6:.1f} of {num_tokens / 1e6:.1f} M tokens", flush=True)
    segments.num_tokens = num_tokens
    return time.perf_counter() - started_s


def _memory(
    segments: SequenceSegments, processes: Sequence[ContextProcess], before: Sequence[int], token_bytes: int
) -> list[dict[str, float]]:
    """Return what each shard holds, and by how much its memory grew beyond the formula."""
    found = []
    for process, bytes_before in zip(processes, before, strict=True):
        shard_id = process.holder.shard_id
        tokens = sum(each.stop - each.start for each in segments.segments if each.shard_id == shard_id)
        grown = process.resident_bytes - bytes_before
        formula = tokens * token_bytes
        found.append({"tokens": tokens, "grown": grown, "formula": formula, "over_formula": grown / formula - 1})
    return found


def _errors(
    shards: ContextShards, segments: SequenceSegments, num_tokens: int, checkpoint: Checkpoint
) -> dict[str, float]:
    """Return the largest difference from the float64 reference, for one query head of each group."""
    config = checkpoint.config
    layer = sorted(config.nope_layers)[-1]
    draw = torch.Generator().manual_seed(1)
    q_THC = torch.randn(1, config.num_heads, config.head_size, generator=draw) * SHARPNESS
    k_TGC, v_TGC = (torch.rand(1, config.num_kv_heads, config.head_size, generator=draw) * 2 - 1 for _ in range(2))
    assert shards.extend(segments, num_tokens + 1)
    turn = attend(shards, [ContextSpan(segments, 0, 1, num_tokens)], layer, q_THC, k_TGC, v_TGC)
    next(turn)
    try:
        next(turn)
        raise AssertionError("attention yields once")
    except StopIteration as end:
        mixed_THC: Tensor = end.value
    per_group = config.num_heads // config.num_kv_heads
    heads = range(0, config.num_heads, per_group)
    found = _reference(segments, layer, q_THC[0, list(heads)], k_TGC, v_TGC)
    return {str(head): (mixed_THC[0, head].double() - found[row]).abs().max().item() for row, head in enumerate(heads)}


def _reference(segments: SequenceSegments, layer: int, q_GC: Tensor, k_TGC: Tensor, v_TGC: Tensor) -> Tensor:
    """Return attention [G, C] of one query per group over all segments and one more token, in float64."""
    q_GC = q_GC.double() * q_GC.shape[-1] ** -0.5
    most_G = torch.full((q_GC.shape[0],), -torch.inf, dtype=torch.float64)
    sum_G, mixed_GC = torch.zeros_like(most_G), torch.zeros_like(q_GC)
    pieces = (
        (k_TGC, v_TGC),
        *(
            synthetic(each.segment_id, layer, (CHUNK, *k_TGC.shape[1:]), k_TGC.dtype)
            for each in segments.segments
            if each.start < segments.num_tokens
        ),
    )
    for keys_TGC, values_TGC in pieces:
        scores_TG = (keys_TGC.double() * q_GC).sum(-1)
        higher_G = torch.maximum(most_G, scores_TG.amax(0))
        weights_TG = torch.exp(scores_TG - higher_G)
        scale_G = torch.exp(most_G - higher_G)
        sum_G = sum_G * scale_G + weights_TG.sum(0)
        mixed_GC = mixed_GC * scale_G[:, None] + torch.einsum("tg,tgc->gc", weights_TG, values_TGC.double())
        most_G = higher_G
    return mixed_GC / sum_G[:, None]


def _decode(
    checkpoint: Checkpoint, shards: ContextShards, segments: SequenceSegments, start: int, num_steps: int
) -> list[float]:
    """Generate greedily behind the context; return each step's seconds."""
    decoder = load_decoder(checkpoint, dtype=torch.float32)
    weights = ExpertWeights.load(checkpoint, range(checkpoint.config.num_experts), torch.float32)
    forward = Forward(decoder, LocalTransport(weights.run), shards)
    layout = CacheLayout(checkpoint.config, "float32")
    plan = layout.plan_local(layout.pages_bytes(0, 2 * CHUNK // layout.page_tokens))
    kv, storage = PagedKv(plan), KvStorage(layout, plan, torch.float32, torch.device("cpu"))
    pages = kv.begin_at(start)
    token, seconds = 1, []
    for position in range(start, start + num_steps):
        started_s = time.perf_counter()
        kv.grow(pages, 1)
        assert shards.extend(segments, position + 1)
        batch = Batch.of([Span(pages, position, [token], segments=segments)], layout, torch.device("cpu"))
        logits_BV = forward([batch], storage)
        assert logits_BV.isfinite().all(), "logits are not numbers"
        token = int(logits_BV.argmax())
        kv.advance(pages, [token], 1, publish=False)
        segments.num_tokens = position + 1
        seconds.append(time.perf_counter() - started_s)
        print(f"step {position - start + 1}: {seconds[-1]:.2f} s", flush=True)
    return seconds


def _report(result: dict[str, object], is_good: bool) -> None:
    print(json.dumps(result, indent=1))
    print(f"memory within {MOST_MEMORY:.0%} of the formula and errors within {MOST_ERROR:g}: {is_good}")


if __name__ == "__main__":
    sys.exit(main())
