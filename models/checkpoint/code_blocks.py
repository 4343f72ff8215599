"""Codes of one of our tensors as outputs by inputs, put together from its blocks.

Files keep projections [out, in], and routed experts as [in, out] or turned; what multiplies codes wants [out, in].
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.checkpoint.codes import CODES_PER_ELEMENT, unpack_codes
from models.checkpoint.stored_tensor import Block
from models.linear import INT4_GROUP, Fp8Weight, Int4Weight, symmetric_int4

CodeForm = Literal["int4", "fp8"]


@dataclass(frozen=True, slots=True)
class StoredCodes:
    """How a tensor's codes lie, seen as a weight [O, I]."""

    form: CodeForm
    shape: tuple[int, int]
    """(O, I)."""
    group: int
    """Inputs of an output that share a scale."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A block's place in a weight [O, I]."""

    block: Block
    is_by_output: bool
    """Whether the block's rows are outputs, not inputs."""
    first_output: int
    first_input: int

    @property
    def num_outputs(self) -> int:
        return self.block.height if self.is_by_output else self.block.width

    @property
    def num_inputs(self) -> int:
        return self.block.width if self.is_by_output else self.block.height

    @property
    def scales_shape(self) -> tuple[int, int]:
        """(outputs, inputs) of the scales."""
        assert self.block.scales is not None, "stored_codes said so"
        rows, columns = self.block.scales.num_rows, self.block.scales.width
        return (rows, columns) if self.is_by_output != self.block.scales.is_transposed else (columns, rows)


def stored_codes(blocks: Iterable[Block], shape: tuple[int, ...], *, is_turned: bool) -> StoredCodes | None:
    """Return how a tensor's codes lie; None: it has none, or such as no form of `models.linear` stands for.

    Args:
        blocks: of the tensor.
        shape: of the tensor.
        is_turned: whether the tensor is [in, out].
    """
    places = _places(blocks, is_turned=is_turned)
    if any(place.block.scales is None or place.scales_shape[0] != place.num_outputs for place in places):
        return None
    num_outputs, num_inputs = reversed(shape) if is_turned else shape
    group = places[0].num_inputs // places[0].scales_shape[1]
    if any(place.num_inputs != group * place.scales_shape[1] or place.first_input % group for place in places):
        return None
    if any(CODES_PER_ELEMENT[place.block.source.dtype] > 1 for place in places):
        return None if group % INT4_GROUP else StoredCodes("int4", (num_outputs, num_inputs), group)
    return StoredCodes("fp8", (num_outputs, num_inputs), group) if group == num_inputs else None


def read_codes(
    blocks: Iterable[Block], codes: StoredCodes, read_rows: Callable[[Block], Tensor], *, is_turned: bool
) -> Int4Weight | Fp8Weight:
    """Return a tensor's codes as they are.

    Args:
        blocks: of the tensor.
        codes: what `stored_codes` says of them.
        read_rows: returns a block's rows as they are stored.
        is_turned: whether the tensor is [in, out].
    """
    num_outputs, num_inputs = codes.shape
    values_OI = torch.empty(codes.shape, dtype=torch.uint8 if codes.form == "int4" else torch.float8_e4m3fn)
    scale_OG = torch.empty(num_outputs, num_inputs // codes.group)
    for place in _places(blocks, is_turned=is_turned):
        assert place.block.scales is not None, "stored_codes said so"
        values, scales = (
            unpack_codes(read_rows(place.block), place.block.is_packed_by_column),
            read_rows(place.block.scales),
        )
        scales = scales.T if place.block.scales.is_transposed else scales
        outputs = slice(place.first_output, place.first_output + place.num_outputs)
        inputs = slice(place.first_input, place.first_input + place.num_inputs)
        values_OI[outputs, inputs] = values if place.is_by_output else values.T
        scale_OG[outputs, inputs.start // codes.group : inputs.stop // codes.group] = (
            scales if place.is_by_output else scales.T
        )
    if codes.form == "fp8":
        return Fp8Weight(values_OI, scale_OG[:, 0].contiguous())
    return symmetric_int4(values_OI, scale_OG)


def _places(blocks: Iterable[Block], *, is_turned: bool) -> list[_Place]:
    return [
        _Place(block, block.is_transposed, block.column, block.row)
        if is_turned
        else _Place(block, not block.is_transposed, block.row, block.column)
        for block in blocks
    ]
