"""The expert kernels at a model's shapes: time, part of what the card can do, error, and torch's way to do the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.gpu.card import Card, exact_swiglu, relative_error, seconds_of
from benchmarks.gpu.random_weights import random_mlp
from models.gpu.launches import down_launch, gate_up_launch
from models.gpu.moe import block_of
from models.gpu.swiglu import Block, SwigluPlan, plan_swiglu, swiglu
from models.gpu.weight import Form, plain

_MOST_WEIGHTS_BYTES = 24 << 30
"""Of all experts that calls take turns with: far more than a card's cache holds."""
_BYTES: dict[Form, float] = {"plain": 2, "int8": 1, "fp8": 1, "int4": 0.52}
_CALLS = 8
_MOST_CHECKED = 64
"""Tokens of an expert whose outputs are compared with double precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Experts of a model, and how many of them a layer has."""

    name: str
    width: int
    inner: int
    experts: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertRow:
    """One form, shape and number of tokens."""

    shape: str
    form: str
    tokens: int
    experts: int
    """That the tokens visit."""
    us: float
    tb_per_s: float
    """Of weights, each counted once."""
    tflops: float
    part_of_copy: float
    """Of what copying reads and writes together."""
    part_of_matmul: float
    error: float
    torch_us: float | None
    """Of torch's grouped product with the same experts in bfloat16; None where it was not run."""

    def described(self) -> str:
        """Return this as a line."""
        beside = "" if self.torch_us is None else f", torch {self.torch_us:.0f} us ({self.torch_us / self.us:.2f}x)"
        return (
            f"{self.shape} {self.form:>5}, {self.tokens:>4} tokens, {self.experts:>3} experts: {self.us:8.1f} us, "
            f"{self.tb_per_s:.2f} TB/s ({self.part_of_copy:.0%}), {self.tflops:.0f} TFLOP/s "
            f"({self.part_of_matmul:.0%}), error {self.error:.1e}{beside}"
        )


def measure_experts(
    card: Card, shape: Shape, form: Form, tokens: Sequence[int], device: torch.device
) -> Iterator[ExpertRow]:
    """Yield a row for every number of tokens; calls take turns with other experts, so that no cache has them."""
    width, inner = shape.width, shape.inner
    num_blocks = max(8, min(shape.experts, int(_MOST_WEIGHTS_BYTES // (3 * width * inner * _BYTES[form]))))
    blocks = [_random_block(form, width, inner, device) for _ in range(num_blocks)]
    stacked = _stack(blocks) if form == "plain" else None
    if stacked is not None:
        blocks = [Block(plain(gate_up), plain(down)) for gate_up, down in zip(*stacked, strict=True)]
    for number in tokens:
        num_experts = min(number, shape.experts, num_blocks)
        counts = [number // num_experts + (index < number % num_experts) for index in range(num_experts)]
        x_ND = torch.randn(number, width, device=device, dtype=torch.bfloat16)
        turns = [[(turn * num_experts + index) % num_blocks for index in range(num_experts)] for turn in range(_CALLS)]
        launches = gate_up_launch(form, max(counts)), down_launch(form, max(counts))
        plans = [plan_swiglu([blocks[index] for index in turn], counts, *launches) for turn in turns]
        seconds = seconds_of([partial(swiglu, x_ND, plan) for plan in plans], device)
        torch_s = _torch_seconds(stacked, turns, counts, x_ND) if stacked is not None else None
        num_bytes = num_experts * sum(each.num_bytes for each in (blocks[0].gate_up, blocks[0].down))
        operations = 6 * number * width * inner
        yield ExpertRow(
            shape=shape.name,
            form=form,
            tokens=number,
            experts=num_experts,
            us=seconds * 1e6,
            tb_per_s=num_bytes / seconds / 1e12,
            tflops=operations / seconds / 1e12,
            part_of_copy=num_bytes / seconds / card.copy_bytes_per_s,
            part_of_matmul=operations / seconds / card.flops,
            error=_error_of([blocks[index] for index in turns[0]], counts, x_ND, plans[0]),
            torch_us=None if torch_s is None else torch_s * 1e6,
        )


def _random_block(form: Form, width: int, inner: int, device: torch.device) -> Block:
    block = block_of(random_mlp(form, width, inner, device))
    assert block is not None
    return block


def _error_of(blocks: Sequence[Block], counts: Sequence[int], x_ND: Tensor, plan: SwigluPlan) -> float:
    """Return the relative error of the first tokens' outputs against double precision, of the weights as rounded."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # memory that nobody has written yet is NaN
    found_ND, start = swiglu(x_ND, plan), 0
    torch.use_deterministic_algorithms(False)
    pairs: list[tuple[Tensor, Tensor]] = []
    for block, count in zip(blocks, counts, strict=True):
        rows = slice(start, start + min(count, _MOST_CHECKED))
        pairs.append((found_ND[rows], exact_swiglu(block, x_ND[rows])))
        start += count
        if sum(len(found) for found, _ in pairs) >= _MOST_CHECKED:
            break
    found, expected = (torch.cat(each) for each in zip(*pairs, strict=True))
    return relative_error(found, expected)


def _stack(blocks: list[Block]) -> tuple[Tensor, Tensor]:
    """Return all weights as torch's grouped product wants them, [E, 2F, D] and [E, D, F]."""
    return torch.stack([each.gate_up.values for each in blocks]), torch.stack([each.down.values for each in blocks])


def _torch_seconds(
    stacked: tuple[Tensor, Tensor], turns: Sequence[Sequence[int]], counts: Sequence[int], x_ND: Tensor
) -> float | None:
    """Return the seconds of torch's grouped product with as many experts; None where this torch has none."""
    if not hasattr(torch, "_grouped_mm"):
        return None
    offsets = torch.tensor(counts, device=x_ND.device, dtype=torch.int32).cumsum(0, dtype=torch.int32)

    def call(first: int) -> Callable[[], Tensor]:
        gate_up, down = (each[first : first + len(counts)].transpose(1, 2) for each in stacked)

        def run() -> Tensor:
            gate_NF, up_NF = torch._grouped_mm(x_ND, gate_up, offs=offsets).chunk(2, dim=1)
            return torch._grouped_mm(F.silu(gate_NF) * up_NF, down, offs=offsets)

        return run

    last = stacked[0].shape[0] - len(counts)
    return seconds_of([call(min(turn[0], last)) for turn in turns], x_ND.device)
