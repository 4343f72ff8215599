"""The experts written down once, in plain torch: what the other kernels are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.linear.plain import PlainLinear
from models.llama4.mlp import Mlp


class ReferenceKernel:
    """Runs on every device and in every dtype that torch multiplies matrices in."""

    def pack(self, gate_up_D2F: Tensor, down_FD: Tensor) -> Mlp:
        """Keep the weights as the checkpoint has them."""
        return Mlp(PlainLinear(gate_up_D2F.t()), PlainLinear(down_FD.t()))

    def run(self, experts: Sequence[Mlp], token_counts: Sequence[int], hidden_ND: Tensor) -> Tensor:
        """Run one expert after the other."""
        outputs_ND = torch.empty_like(hidden_ND)
        start = 0
        for expert, count in zip(experts, token_counts, strict=True):
            rows = slice(start, start + count)
            outputs_ND[rows] = expert(hidden_ND[rows])
            start += count
        return outputs_ND
