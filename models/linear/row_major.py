"""A weight as plain rows [out, in], bfloat16 or int8, multiplied by a kernel of our own.

Measured on one core of an AMD EPYC (Zen 5, AVX-512, bf16), torch 2.13, 2026-11-21, us per product, weights taken in
turn so that they come from memory:

    O x I          rows:              1      8     32    128    256
    768 x 768      oneDNN, packed    50     99    174    410    746
                   here              32     53    116    409    752
    3072 x 768     oneDNN, packed   188    371    667   1613   2885
                   here             130    224    468   1608   3102

With two threads it gains more: they take what is left to do, instead of a half each, and nobody waits for a thread that
another process keeps from its core.
"""

from __future__ import annotations

from torch import Tensor

from models.cpu.tensors import linear
from models.cpu.weight import Weight


class RowMajorLinear:
    """A weight by rows, for rows of bfloat16.

    Args:
        weight: kept.
    """

    def __init__(self, weight: Weight) -> None:
        self.weight = weight

    @property
    def num_bytes(self) -> int:
        """Bytes of the weight in memory."""
        return self.weight.num_bytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return x · weightᵀ."""
        return linear(self.weight, x_TI.contiguous())
