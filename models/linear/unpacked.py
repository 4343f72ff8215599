"""A form's weight by rows again: exactly the numbers that products are made with, to be packed elsewhere."""

from __future__ import annotations

from torch import Tensor

from models.linear.linear import Linear
from models.linear.onednn import PackedLinear, SmallLinear
from models.linear.plain import PlainLinear
from models.linear.quantization import Int8Weight
from models.linear.row_major import RowMajorLinear


def unpacked(linear: Linear) -> Tensor | Int8Weight | None:
    """Return a weight [O, I] as `pack_linear` got it, or as it rounded it; None: the form does not give it back.

    What is returned may share the form's memory: only read. Packed again, it makes products that are the same to the
    bit, wherever the same form is chosen.

    Cost: a copy where the form has reordered it.
    """
    if isinstance(linear, RowMajorLinear):
        rows_OI, scale_O = linear.weight.rows_OI, linear.weight.scale_O
        return rows_OI if scale_O is None else Int8Weight(rows_OI, scale_O)
    if isinstance(linear, PackedLinear | SmallLinear):
        return linear.unpacked()
    return linear.weight_OI if isinstance(linear, PlainLinear) else None
