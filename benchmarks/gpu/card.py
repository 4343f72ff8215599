"""What a card can do, and how long calls on it take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch
import torch.nn.functional as F
from torch import Tensor

from models.gpu.swiglu import Block

_REPLAYS = 7
_COPIED = 1 << 29
_MATRIX = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """A card, and what it reached."""

    name: str
    copy_bytes_per_s: float
    """Read and written together: reading alone may be a little faster."""
    flops: float
    """Operations per second of a product of two large bfloat16 matrices."""


def measure_card(device: torch.device) -> Card:
    """Measure a card; of a CPU, which stands in for one only to try this out, nothing is told."""
    if device.type == "cpu":
        return Card(name="no card", copy_bytes_per_s=math.nan, flops=math.nan)
    source = torch.randn(_COPIED, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / seconds_of([lambda: target.copy_(source)], device)
    a, b = (torch.randn(_MATRIX, _MATRIX, device=device, dtype=torch.bfloat16) for _ in range(2))
    flops = 2 * _MATRIX**3 / seconds_of([lambda: torch.mm(a, b)], device)
    name = torch.cuda.get_device_properties(device).name
    return Card(name=name, copy_bytes_per_s=copied, flops=flops)


def seconds_of(calls: Sequence[Callable[[], object]], device: torch.device) -> float:
    """Return the seconds of one call: the median of several replays of all of them, recorded as one graph."""
    if device.type == "cpu":
        began = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - began) / len(calls)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:  # compiles, too
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    return median(replay_seconds(graph.replay, device) for _ in range(_REPLAYS)) / len(calls)


def replay_seconds(replay: Callable[[], object], device: torch.device) -> float:
    """Return the seconds from the beginning of what a call starts to its end on the card."""
    if device.type == "cpu":
        began = time.perf_counter()
        replay()
        return time.perf_counter() - began
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    replay()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def exact_swiglu(block: Block, x_TD: Tensor) -> Tensor:
    """Return a block's outputs [T, D] in double precision, of the weights as rounded."""
    gate_TF, up_TF = (x_TD.double() @ block.gate_up.dequantized().double().t()).chunk(2, dim=1)
    return (F.silu(gate_TF) * up_TF) @ block.down.dequantized().double().t()


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Return the norm of the difference, of the norm of what is expected in double precision."""
    return float((found.double() - expected).norm() / expected.norm())
