"""The SwiGLU feed-forward block, as dense layers, shared and routed experts use it."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from models.cpu.tensors import swiglu
from models.cpu.weight import Weight
from models.gpu.linear import GpuLinear, swiglu_of
from models.linear import Linear, RowMajorLinear


@dataclass(frozen=True, slots=True)
class Mlp:
    """down(silu(gate(x)) * up(x)). Source: Shazeer 2020.

    Gate and up are one product, [2F, D], the gate's F rows first: as fast as two with silu and multiplication fused
    into them from 16 rows on, faster below (oneDNN, D = 768, F = 1536). Down is [D, F].
    """

    gate_up: Linear
    down: Linear

    @property
    def num_bytes(self) -> int:
        """Bytes of the weights in memory."""
        return self.gate_up.num_bytes + self.down.num_bytes

    @property
    def rows(self) -> tuple[Weight, Weight] | None:
        """Return gate and up [2F, D] and down [D, F] if they lie as the CPU's kernels read them."""
        if isinstance(self.gate_up, RowMajorLinear) and isinstance(self.down, RowMajorLinear):
            return self.gate_up.weight, self.down.weight
        return None

    def __call__(self, x_TD: Tensor) -> Tensor:
        """Return [T, D] in the dtype of x."""
        if rows := self.rows:
            return swiglu([rows], [x_TD.shape[0]], x_TD.contiguous())
        if isinstance(self.gate_up, GpuLinear) and isinstance(self.down, GpuLinear):
            return swiglu_of(self.gate_up, self.down, x_TD)
        gate_TF, up_TF = self.gate_up(x_TD).chunk(2, dim=-1)
        return self.down(F.silu(gate_TF).mul_(up_TF))
