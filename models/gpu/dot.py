"""A product of two tiles, on a card and in Triton's interpreter alike."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def dot(left, right, acc, IS_NATIVE: tl.constexpr):
    """Add left · right, both in one dtype, to a float32 tile; integers on the left where interpreted.

    Triton's interpreter (3.9) multiplies bfloat16 as the integers that it keeps them in, and converts integers to it so
    too. The numbers are the same in float32.
    """
    if IS_NATIVE:
        acc = tl.dot(left, right, acc, input_precision="ieee")
    else:
        acc = tl.dot(left.to(tl.float32), right.to(tl.float32), acc, input_precision="ieee")
    return acc
