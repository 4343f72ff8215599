"""Experts on a GPU: all of a dispatch in two launches, weights in the tokens' dtype or rounded (`models.gpu`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from models.arena import Arena
from models.gpu.launches import down_launch, gate_up_launch
from models.gpu.linear import GpuLinear
from models.gpu.swiglu import Block, plan_swiglu, swiglu
from models.gpu.weight import GROUP, GpuWeight, keep, plain, round_weight
from models.linear import Quantization, Rounded
from models.llama4.mlp import Mlp

_BYTES_PER_WEIGHT: dict[Quantization, float] = {"int8": 1, "fp8": 1, "int4": 0.5 + 2 / GROUP}


class TritonKernel:
    """Runs experts whose weights lie on one GPU.

    Args:
        device: which one; the CPU where Triton interprets.
        quantize: how to round weights; None: not at all.
    """

    def __init__(self, device: torch.device, quantize: Quantization | None = None) -> None:
        self._device = device
        self._quantize: Quantization | None = quantize

    def pack(self, gate_up_D2F: Tensor, down_FD: Tensor, arena: Arena | None = None) -> Mlp:
        """Lay both weights on the device by rows; an arena, which is memory of the CPU, is not used."""
        is_cpu = self._device.type == "cpu"  # the arguments' memory is used again there
        matrices = (each.t().to(self._device, copy=is_cpu) for each in (gate_up_D2F, down_FD))
        quantize = self._quantize
        return _mlp(round_weight(each, quantize) if quantize else plain(each) for each in matrices)

    def pack_rounded(self, gate_up: Rounded, down: Rounded, dtype: torch.dtype, arena: Arena) -> Mlp:
        """Keep codes where the kernels read such; else what they stand for, in the dtype."""
        return _mlp(
            keep(each, dtype, self._device) or plain(each.dequantized().to(dtype).to(self._device))
            for each in (gate_up, down)
        )

    def bytes_per_weight(self, dtype: torch.dtype) -> float:
        """Return the dtype's bytes, or what rounding leaves of them."""
        return _BYTES_PER_WEIGHT[self._quantize] if self._quantize else dtype.itemsize

    def run(self, experts: Sequence[Mlp], token_counts: Sequence[int], hidden_ND: Tensor) -> Tensor:
        """Run the experts: in one go if all are of one form, as they are but for releases that leave some unrounded."""
        blocks = [_block(expert) for expert in experts]
        if len({(block.gate_up.form, block.down.form) for block in blocks}) == 1:
            return _run(blocks, token_counts, hidden_ND)
        parts_nD = hidden_ND.split(list(token_counts))
        return torch.cat(
            [_run([block], [part_nD.shape[0]], part_nD) for block, part_nD in zip(blocks, parts_nD, strict=True)]
        )


def _run(blocks: Sequence[Block], token_counts: Sequence[int], hidden_ND: Tensor) -> Tensor:
    most_tokens = max(token_counts)
    launches = gate_up_launch(blocks[0].gate_up.form, most_tokens), down_launch(blocks[0].down.form, most_tokens)
    return swiglu(hidden_ND.contiguous(), plan_swiglu(blocks, token_counts, *launches))


def _mlp(weights: Iterable[GpuWeight]) -> Mlp:
    return Mlp(*(GpuLinear(each) for each in weights))


def _block(expert: Mlp) -> Block:
    gate_up, down = expert.gate_up, expert.down
    assert isinstance(gate_up, GpuLinear)
    assert isinstance(down, GpuLinear)
    return Block(gate_up.weight, down.weight)
