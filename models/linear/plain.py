"""A weight as the checkpoint has it: what the other forms are compared with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class PlainLinear:
    """Runs on every device and in every dtype that torch multiplies matrices in.

    Args:
        weight_OI: kept as it is, not copied.
    """

    def __init__(self, weight_OI: Tensor) -> None:
        self.weight_OI = weight_OI

    @property
    def num_bytes(self) -> int:
        """Bytes of the weight."""
        return self.weight_OI.nbytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return x · weightᵀ."""
        return F.linear(x_TI, self.weight_OI)
