"""What both ends of a fetch agree on: elements, checksums, sizes."""

from __future__ import annotations

import zlib
from typing import Any

import torch
from torch import Tensor

from models.linear import Quantization
from protos.errors import BadConfig
from protos.weights.v1 import weights_pb2

CHUNK_BYTES = 256 * 1024
"""Bytes of a chunk: copying and packing one into a message holds Python's lock for some ten microseconds."""

MATRICES = (weights_pb2.MATRIX_GATE_UP, weights_pb2.MATRIX_DOWN)
"""An expert's matrices in the order they are sent."""

_ELEMENTS = {
    torch.float32: weights_pb2.ELEMENT_FLOAT32,
    torch.bfloat16: weights_pb2.ELEMENT_BFLOAT16,
    torch.float16: weights_pb2.ELEMENT_FLOAT16,
}
STORED_DTYPES = {element: dtype for dtype, element in _ELEMENTS.items()} | {weights_pb2.ELEMENT_INT8: torch.int8}
"""The dtype in which a matrix's numbers lie, by element."""


def element_of(dtype: torch.dtype, quantize: Quantization | None = None) -> weights_pb2.Element:
    """Return what weights held in a dtype, and perhaps rounded, are sent as.

    Raises:
        BadConfig: there is nothing that says so.
    """
    if quantize == "int8":
        return weights_pb2.ELEMENT_INT8
    if quantize is not None or dtype not in _ELEMENTS:
        raise BadConfig(
            f"expected weights in one of {sorted(map(str, _ELEMENTS))} or rounded to int8, found {quantize or dtype}: "
            "read them from files"
        )
    return _ELEMENTS[dtype]


def bytes_of(tensor: Tensor) -> memoryview:
    """Return a contiguous tensor's memory."""
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array)


def checksum(data: bytes | memoryview) -> int:
    """Return the CRC-32 of some bytes."""
    return zlib.crc32(data)
