"""The experts written down once, in plain torch: what the other kernels are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.arena import Arena
from models.linear import Rounded
from models.linear.plain import PlainLinear
from models.llama4.mlp import Mlp


class ReferenceKernel:
    """Runs on every device and in every dtype that torch multiplies matrices in."""

    def pack(self, gate_up_D2F: Tensor, down_FD: Tensor, arena: Arena | None = None) -> Mlp:
        """Keep the weights as the checkpoint has them."""
        kept = (each.clone() if each.device.type == "cpu" else each for each in (gate_up_D2F, down_FD))
        return Mlp(*(PlainLinear(each.t()) for each in kept))

    def pack_rounded(self, gate_up: Rounded, down: Rounded, dtype: torch.dtype, arena: Arena) -> Mlp:
        """Keep what rounding left, in the dtype."""
        return Mlp(*(PlainLinear(each.dequantized().to(dtype)) for each in (gate_up, down)))

    def bytes_per_weight(self, dtype: torch.dtype) -> float:
        """Return the dtype's bytes."""
        return dtype.itemsize

    def run(self, experts: Sequence[Mlp], token_counts: Sequence[int], hidden_ND: Tensor) -> Tensor:
        """Run one expert after the other."""
        outputs_ND = torch.empty_like(hidden_ND)
        start = 0
        for expert, count in zip(experts, token_counts, strict=True):
            rows = slice(start, start + count)
            outputs_ND[rows] = expert(hidden_ND[rows])
            start += count
        return outputs_ND
