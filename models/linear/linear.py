"""What every form of a resident weight offers."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Linear(Protocol):
    """Multiplies rows by one weight [O, I] in whatever layout it is held."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the weight in memory, as it is held."""

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return x · weightᵀ, [T, O] in the dtype of x.

        Args:
            x_TI: [T, I] in the dtype the weight was packed from, on its device; only read. T may be 0.
        """
