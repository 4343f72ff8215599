"""A tensor as it lies in a file, and the block of it that becomes part of one of ours."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from models.checkpoint.codes import CODE_DTYPES, CODES_PER_ELEMENT

# safetensors' names of dtypes, with bytes per element.
ITEM_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
    "C64": 8,
}
# The dtypes that weights may have, besides those of codes.
WEIGHT_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Consecutive bytes of one file."""

    file: Path
    offset: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a file keeps a tensor, seen as rows of shape[-1] elements each."""

    name: str
    """The file's own name for it."""
    file: Path
    """The file it is in."""
    dtype: str
    """safetensors' name of the dtype; a key of ITEM_BYTES."""
    shape: tuple[int, ...]
    """Extents, outermost first."""
    offset: int
    """Position of the first element in the file, in bytes."""
    row_stride: int | None
    """Elements from one row's start to the next one's; None: not stored in rows, cannot be read."""

    @property
    def num_columns(self) -> int:
        """Elements of a row; a scalar is one row of one."""
        return self.shape[-1] if self.shape else 1

    @property
    def num_rows(self) -> int:
        """Rows when all leading dimensions are taken as one."""
        return math.prod(self.shape[:-1])

    @property
    def num_bytes(self) -> int:
        """Bytes of all elements."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it; only for dtypes that weights or their codes may have."""
        return (WEIGHT_DTYPES | CODE_DTYPES)[self.dtype]


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive rows of a stored tensor and the place in one of our tensors where they go.

    Ours has `height` x `width` at (row, column), or `width` x `height` if the block is transposed.
    """

    source: StoredTensor
    first_row: int
    num_rows: int
    row: int = 0
    column: int = 0
    is_transposed: bool = False
    scales: Block | None = None
    """What to multiply with, of a source of codes: each scale for as many of the block's rows and columns as there are
    for one. A transposed one lies as columns of scales."""

    is_packed_by_column: bool = False
    """Of a source of several codes to an element: whether they are below each other, not beside each other."""

    @property
    def width(self) -> int:
        """Numbers of a row."""
        return self.source.num_columns * (1 if self.is_packed_by_column else self._codes_each)

    @property
    def height(self) -> int:
        """Rows of numbers."""
        return self.num_rows * (self._codes_each if self.is_packed_by_column else 1)

    @property
    def _codes_each(self) -> int:
        return CODES_PER_ELEMENT[self.source.dtype] if self.scales else 1

    @property
    def num_bytes(self) -> int:
        """Bytes to read for it, scales left out."""
        return self.num_rows * self.source.num_columns * ITEM_BYTES[self.source.dtype]

    def byte_ranges(self) -> Iterator[ByteRange]:
        """Yield what to read, in order: one range, or one per row where the rows lie apart."""
        source, item_bytes = self.source, ITEM_BYTES[self.source.dtype]
        stride = source.row_stride or 0
        offset = source.offset + self.first_row * stride * item_bytes
        if stride == source.num_columns or self.num_rows == 1:
            yield ByteRange(source.file, offset, self.num_bytes)
            return
        for row in range(self.num_rows):
            yield ByteRange(source.file, offset + row * stride * item_bytes, source.num_columns * item_bytes)


def whole(source: StoredTensor, *, row: int = 0, column: int = 0, is_transposed: bool = False) -> Block:
    """Return a block of all rows of a stored tensor."""
    return Block(source, 0, source.num_rows, row, column, is_transposed)


def turned(block: Block) -> Block:
    """Return a block's place in the transpose of our tensor."""
    return dataclasses.replace(block, row=block.column, column=block.row, is_transposed=not block.is_transposed)
