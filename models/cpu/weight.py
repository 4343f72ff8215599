"""A weight as the kernels read it."""

from __future__ import annotations

import ctypes
from ctypes import addressof, c_long, c_void_p

import torch
from torch import Tensor

from models.arena import Arena
from models.cpu.library import load_library

_BFLOAT16_MULTIPLE = 32
_INT8_MULTIPLE = 64
"""Numbers in a vector: what widths are multiples of."""
_HEIGHT_MULTIPLE = 4
"""Rows taken at once: what heights are multiples of."""
_PART_NUMEL = 2**17
"""Numbers added up at once when a weight is made."""


class _Weight(ctypes.Structure):
    _fields_ = (("rows", c_void_p), ("scale", c_void_p), ("sums", c_void_p), ("height", c_long), ("width", c_long))


class Weight:
    """A matrix [O, I] by rows, in bfloat16 or in int8.

    Args:
        rows_OI: contiguous, bfloat16 or int8; kept, not copied.
        scale_O: of int8 rows, float32.
    """

    def __init__(self, rows_OI: Tensor, scale_O: Tensor | None = None) -> None:
        self.height, self.width = rows_OI.shape
        self.is_int8 = scale_O is not None
        self.rows_OI = rows_OI
        self.scale_O = scale_O
        self._sums_O = _sum_rows(rows_OI) if self.is_int8 else None
        others = (None if each is None else each.data_ptr() for each in (scale_O, self._sums_O))
        self._struct = _Weight(rows_OI.data_ptr(), *others, self.height, self.width)
        self.address = addressof(self._struct)
        """Of the structure; alive as long as this is."""

    @property
    def num_bytes(self) -> int:
        """Bytes in memory."""
        return sum(each.nbytes for each in (self.rows_OI, self.scale_O, self._sums_O) if each is not None)


def _sum_rows(codes_OI: Tensor) -> Tensor:
    """Return the sum of each row, int32. In parts: torch makes 32-bit numbers of all that it is told to add up."""
    parts = codes_OI.split(max(1, _PART_NUMEL // codes_OI.shape[1]))
    return torch.cat([part_OI.sum(1, dtype=torch.int32) for part_OI in parts])


def is_supported(weight_OI: Tensor) -> bool:
    """Tell whether the kernels multiply by such a weight on this machine, in bfloat16."""
    height, width = weight_OI.shape
    fits = height % _HEIGHT_MULTIPLE == 0 and width % _BFLOAT16_MULTIPLE == 0
    return fits and weight_OI.device.type == "cpu" and weight_OI.dtype == torch.bfloat16 and load_library() is not None


def is_int8_supported(weight_OI: Tensor) -> bool:
    """Tell whether they do once it is rounded to int8."""
    library = load_library()
    return bool(
        is_supported(weight_OI) and weight_OI.shape[1] % _INT8_MULTIPLE == 0 and library and library.herd_has_int8()
    )


def copy_weight(weight_OI: Tensor, arena: Arena) -> Weight:
    """Return a copy of a bfloat16 weight, in large pages: a file's would not be."""
    return Weight(arena.empty(weight_OI.shape, weight_OI.dtype).copy_(weight_OI))
