"""Reads the header of a safetensors file: names, dtypes, shapes and offsets, and not one weight.

The format: an unsigned 64-bit little-endian length n, n bytes of JSON, then the data, which the tensors' offsets cover
without gap or overlap. What the header claims is checked against the file before anything relies on it.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

from models.checkpoint.stored_tensor import ITEM_BYTES, StoredTensor
from models.json_fields import parse_json_object
from protos.errors import BadCheckpoint

# The format's own limit, in bytes.
MAX_HEADER_BYTES = 100_000_000
_ADVICE = "download the file again"


def read_safetensors_header(file: Path) -> dict[str, StoredTensor]:
    """Return the tensors of a safetensors file by name.

    Raises:
        BadCheckpoint: the file cannot be read, is shorter or longer than its header says, or the header is not what
            the format allows.
    """
    try:
        with file.open("rb") as stream:
            num_bytes = os.fstat(stream.fileno()).st_size
            length = int.from_bytes(stream.read(8), "little")
            if num_bytes < 8 or length > num_bytes - 8:
                raise BadCheckpoint(
                    f"{file}: expected a header of {length} bytes, found a file of {num_bytes}: {_ADVICE}"
                )
            if length > MAX_HEADER_BYTES:
                raise BadCheckpoint(
                    f"{file}: expected a header of at most {MAX_HEADER_BYTES} bytes, found {length}: {_ADVICE}"
                )
            text = stream.read(length)
    except OSError as error:
        raise BadCheckpoint(f"{file}: expected a readable file, found: {error.strerror}") from error
    try:
        header = parse_json_object(text)
    except ValueError as error:
        raise BadCheckpoint(f"{file}: expected a JSON object as header, found: {error}: {_ADVICE}") from error
    header.pop("__metadata__", None)
    tensors = {name: _tensor(file, name, entry, 8 + length) for name, entry in header.items()}
    _check_coverage(file, sorted(tensors.values(), key=_position), 8 + length, num_bytes)
    return tensors


def _tensor(file: Path, name: str, entry: Any, data_offset: int) -> StoredTensor:
    """Return one tensor after checking that its dtype, shape and offsets agree."""
    if not isinstance(entry, dict):
        raise BadCheckpoint(f"{file}: {name}: expected an object with dtype, shape and data_offsets, found {entry!r}")
    dtype: Any = entry.get("dtype")
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise BadCheckpoint(f"{file}: {name}: expected a dtype of {sorted(ITEM_BYTES)}, found {dtype!r}")
    if not _are_counts(shape):
        raise BadCheckpoint(f"{file}: {name}: expected a list of extents as shape, found {shape!r}: {_ADVICE}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise BadCheckpoint(f"{file}: {name}: expected [begin, end] as data_offsets, found {offsets!r}: {_ADVICE}")
    expected = math.prod(shape) * ITEM_BYTES[dtype]
    if offsets[1] - offsets[0] != expected:
        raise BadCheckpoint(
            f"{file}: {name}: expected {expected} bytes for shape {shape} of {dtype}, found data_offsets {offsets} "
            f"({offsets[1] - offsets[0]} bytes): {_ADVICE}"
        )
    columns = shape[-1] if shape else 1
    return StoredTensor(name, file, dtype, tuple(shape), data_offset + offsets[0], columns)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _position(tensor: StoredTensor) -> tuple[int, int]:
    """Order tensors in the file; an empty one comes before the one that begins at the same byte."""
    return tensor.offset, tensor.num_bytes


def _check_coverage(file: Path, tensors: list[StoredTensor], data_offset: int, num_bytes: int) -> None:
    """Check that tensors in order of offset cover the data exactly."""
    end, previous = data_offset, "the header"
    for tensor in tensors:
        if tensor.offset != end:
            raise BadCheckpoint(
                f"{file}: {tensor.name}: expected to begin at byte {end}, where {previous} ends, "
                f"found {tensor.offset}: {_ADVICE}"
            )
        end += tensor.num_bytes
        previous = tensor.name
        if end > num_bytes:
            raise BadCheckpoint(
                f"{file}: {tensor.name}: expected its bytes to end at {end}, "
                f"found a file of {num_bytes} bytes: {_ADVICE}"
            )
    if end != num_bytes:
        raise BadCheckpoint(f"{file}: expected {end} bytes, as its header says, found {num_bytes}: {_ADVICE}")
