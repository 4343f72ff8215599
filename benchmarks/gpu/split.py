"""A decode step with experts in another process, by each lane, beside one with experts beside the router.

A model of Scout's shape with fewer layers, written to a temporary folder; the router's side here, `python -m experts`
there, both on one card. What is timed is a recorded step, from numbers on the host to logits on the card.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.expert_processes import open_experts
from benchmarks.gpu.card import replay_seconds
from benchmarks.random_llama4 import RandomLlama4, write_random_llama4
from benchmarks.split_lanes import LANES, connect
from experts.weights import ExpertWeights
from models.checkpoint import open_checkpoint
from models.linear import Quantization
from models.llama4.decoder import load_decoder
from router.batch import Span
from router.decode_inputs import DecodeCache
from router.decode_segments import DecodeSegments
from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import KvStorage
from router.paging.paged_kv import PagedKv
from router.resident import record_steps, resident_experts
from router.transport.local import LocalTransport

_STEPS = 40
_ROUNDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitRow:
    """So many sequences, one lane."""

    sequences: int
    lane: str
    layer_us: float | None
    """A step's time by its layers; None: the lane was refused."""
    local_us: float
    """The same with experts beside the router."""
    refused: str = ""

    def described(self) -> str:
        """Return this as a line."""
        if self.layer_us is None:
            return f"split, {self.sequences:>3} sequences by {self.lane}: refused: {self.refused}"
        return (
            f"split, {self.sequences:>3} sequences by {self.lane}: {self.layer_us:.0f} us a layer, local "
            f"{self.local_us:.0f} us: {self.local_us / self.layer_us:.2f} of its rate"
        )


def measure_split_steps(
    model: RandomLlama4, quantize: Quantization | None, sequences: Sequence[int], context: int, device: torch.device
) -> Iterator[SplitRow]:
    """Yield a row for every number of sequences and lane.

    Args:
        model: what to write and run.
        quantize: how to round its weights.
        sequences: how many at once.
        context: tokens of each.
        device: of both processes.
    """
    dtype = torch.bfloat16
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="herd-split-")))
        write_random_llama4(folder, model)
        checkpoint = open_checkpoint(folder)
        decoder = load_decoder(checkpoint, dtype=dtype, device=device, quantize=quantize)
        decoder.has_gpu_kernels = True  # in Triton's interpreter, where there is no card
        experts = range(model.experts)
        processes = open_experts(
            checkpoint, [experts], dtype="bfloat16", threads=1, quantize=quantize, device=device.type
        )
        placement = stack.enter_context(processes).transport.placement
        layout = CacheLayout(decoder.config, "bfloat16")
        plan = layout.plan(layout.sequence_bytes(context + layout.page_tokens) * max(sequences), max(sequences))
        kv, storage = PagedKv(plan), KvStorage(layout, plan, dtype, device)
        for cached in (each for layer in storage.plain or () for each in layer):
            cached.normal_()
        ids = [0] * context
        spans = []
        for _ in range(max(sequences)):
            pages = kv.admit(ids, expect_tokens=context, use_cached=False)
            kv.grow(pages, context)
            spans.append(Span(pages, context - 1, ids[-1:]))
        held = ExpertWeights.load(checkpoint, experts, dtype, device=device, quantize=quantize)
        beside = LocalTransport(held.run, held.held_in)
        resident = resident_experts(decoder, beside)
        cache = DecodeCache(storage, layout, plan, max(sequences), context)
        local = record_steps(decoder, beside, resident, cache, lambda: None)
        assert local is not None
        steps: dict[str, Callable[[Sequence[Span]], Tensor | None]] = {}
        refused: dict[str, str] = {}
        for lane in LANES:
            transport = connect(lane, placement, checkpoint.fingerprint, device)
            stack.callback(transport.close)
            ((found, reason),) = transport.health().lanes.values()
            if found == lane:
                steps[lane] = DecodeSegments(decoder, transport, cache).logits
            else:
                refused[lane] = reason or f"tensors on {device} travel {found}"
        for number in sequences:
            times = _measure({"local": local.logits, **steps}, spans[:number], device)
            by_layer = {lane: seconds * 1e6 / model.layers for lane, seconds in times.items()}
            for lane in LANES:
                yield SplitRow(
                    sequences=number,
                    lane=lane,
                    layer_us=by_layer.get(lane),
                    local_us=by_layer["local"],
                    refused=refused.get(lane, ""),
                )


def _measure(
    steps: dict[str, Callable[[Sequence[Span]], Tensor | None]], spans: Sequence[Span], device: torch.device
) -> dict[str, float]:
    """Return the median seconds of a step each; they take turns."""
    repeats = _STEPS if device.type == "cuda" else 1
    found: dict[str, list[float]] = {lane: [] for lane in steps}
    for _ in range(_ROUNDS if device.type == "cuda" else 1):
        for lane, step in steps.items():
            found[lane] += [replay_seconds(lambda step=step: step(spans), device) for _ in range(repeats)]
    return {lane: median(seconds) for lane, seconds in found.items()}
