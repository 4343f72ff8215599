"""Turns torch tensors into wire tensors and back, checking before allocating."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from protos.errors import BadTensor
from protos.tensor.v1 import tensor_pb2

_TORCH_BY_WIRE = {
    tensor_pb2.DTYPE_FLOAT32: torch.float32,
    tensor_pb2.DTYPE_BFLOAT16: torch.bfloat16,
    tensor_pb2.DTYPE_FLOAT16: torch.float16,
    tensor_pb2.DTYPE_INT32: torch.int32,
    tensor_pb2.DTYPE_INT64: torch.int64,
}
_WIRE_BY_TORCH = {dtype: wire for wire, dtype in _TORCH_BY_WIRE.items()}


def wire_dtype(dtype: torch.dtype) -> tensor_pb2.Dtype:
    """Return the wire's name of a dtype.

    Raises:
        BadTensor: the wire has no such dtype.
    """
    if dtype not in _WIRE_BY_TORCH:
        raise BadTensor(f"expected one of {sorted(map(str, _WIRE_BY_TORCH))}, found {dtype}: convert it before sending")
    return _WIRE_BY_TORCH[dtype]


def encode_tensor(tensor: Tensor) -> tensor_pb2.Tensor:
    """Return a tensor in wire form. Cost: as `write_tensor`."""
    wire = tensor_pb2.Tensor()
    write_tensor(wire, tensor)
    return wire


def write_tensor(wire: tensor_pb2.Tensor, tensor: Tensor) -> None:
    """Fill an empty wire tensor in place: one inside of a message is not copied again when that message is made.

    Cost: copies the data twice; syncs with the device if it is not on the CPU.
    """
    wire.dtype = wire_dtype(tensor.dtype)
    wire.shape.extend(tensor.shape)
    # numpy has no bfloat16; its bits are all that is needed.
    bits = tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
    wire.data = bits.numpy(force=True).tobytes()


def decode_tensor(
    wire: tensor_pb2.Tensor, *, dtype: torch.dtype, shape: Sequence[int | None], name: str = "tensor"
) -> Tensor:
    """Return a wire tensor as a read-only view of its bytes, after checking it.

    Args:
        wire: as received.
        dtype: the only dtype accepted.
        shape: expected extents, outermost first; None where any extent is right.
        name: how messages call it.

    Returns:
        CPU tensor that shares the message's bytes: do not write to it.

    Raises:
        BadTensor: dtype, rank, an extent or the byte count is not what was expected.
    """
    found_shape = check_form(wire, dtype=dtype, shape=shape, name=name)
    num_bytes = math.prod(found_shape) * dtype.itemsize
    data = wire.data  # every look at the field copies it
    if len(data) != num_bytes:
        raise BadTensor(
            f"{name}: expected {num_bytes} bytes for shape {list(found_shape)} of {dtype}, found {len(data)}: "
            "send row-major data without padding",
            metadata={"expected": str(num_bytes), "found": str(len(data))},
        )
    if not num_bytes:
        return torch.empty(found_shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).view(found_shape)


def check_form(
    wire: tensor_pb2.Tensor, *, dtype: torch.dtype, shape: Sequence[int | None], name: str
) -> tuple[int, ...]:
    """Return a wire tensor's shape, after checking it and the dtype; see `decode_tensor`."""
    if wire.dtype != _WIRE_BY_TORCH[dtype]:
        found = _TORCH_BY_WIRE.get(wire.dtype)
        raise BadTensor(f"{name}: expected dtype {dtype}, found {found or f'code {wire.dtype}'}: send {dtype}")
    found_shape = tuple(wire.shape)
    if len(found_shape) != len(shape) or not all(map(_fits, found_shape, shape)):
        expected = "[" + ", ".join("any" if extent is None else str(extent) for extent in shape) + "]"
        raise BadTensor(
            f"{name}: expected shape {expected}, found {list(found_shape)}: check the sender's layout",
            metadata={"expected": expected, "found": str(list(found_shape))},
        )
    return found_shape


def _fits(found: int, expected: int | None) -> bool:
    return found == expected or (expected is None and found >= 0)


# torch warns once per process that bytes are read-only. That is ours to heed, so it is told here, where nobody hears:
# silencing it around every call would change the filters of all threads, and cost as much as the call.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.frombuffer(b"\0", dtype=torch.uint8)
