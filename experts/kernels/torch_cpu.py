"""The fastest experts torch has on a CPU: one after the other, over weights packed at load.

What is packed how, and how fast that is: `models.linear`. Measured here on one core of an AMD EPYC (Zen 5, AVX-512,
shared machine), torch 2.13, 2026-11-21: one silu for all experts of a dispatch, between their products, gains 7 % at 2
tokens per expert and loses at 1 and 32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.linear import Quantization, pack_linear
from models.llama4.mlp import Mlp


class TorchCpuKernel:
    """Runs the experts that have tokens in turn; rows are views, and outputs are joined only if there are several.

    Args:
        quantize: how to round weights; None: not at all.
    """

    def __init__(self, quantize: Quantization | None = None) -> None:
        self._quantize = quantize

    def pack(self, gate_up_D2F: Tensor, down_FD: Tensor) -> Mlp:
        """Pack both products. Cost: both forms are in memory for a moment."""
        return Mlp(pack_linear(gate_up_D2F.t(), self._quantize), pack_linear(down_FD.t(), self._quantize))

    def run(self, experts: Sequence[Mlp], token_counts: Sequence[int], hidden_ND: Tensor) -> Tensor:
        """Run one expert after the other."""
        if len(experts) == 1:
            return experts[0](hidden_ND)
        parts_nD = hidden_ND.split(list(token_counts))
        return torch.cat([expert(part_nD) for expert, part_nD in zip(experts, parts_nD, strict=True)])
