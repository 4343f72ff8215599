"""The SwiGLU feed-forward block, as dense layers and shared experts use it."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Mlp:
    """down(silu(gate(x)) * up(x)). Source: Shazeer 2020.

    Weights are [out, in]: gate and up [F, D], down [D, F].
    """

    gate: Tensor
    up: Tensor
    down: Tensor

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Return [T, D] in the dtype of x."""
        return F.linear(F.silu(F.linear(x_TD, self.gate)) * F.linear(x_TD, self.up), self.down)
