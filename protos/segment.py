"""Memory that a router and a replica on one host share for one stream's tensors, whatever kind of memory it is.

A kind offers itself in `Hello` and attaches to what another process offered; slots, checks and descriptors are the same
for all. What is mapped stays for as long as the segment or a tensor in it is left, and goes with the last of them.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from torch import Tensor

from protos.codec import check_form, wire_dtype
from protos.errors import BadTensor
from protos.tensor.v1 import tensor_pb2

HEADER_BYTES = 4096
"""Bytes at the beginning that hold no tensor."""
ALIGNMENT = 64
NONCE_BYTES = 16
"""Random bytes at the very beginning: who finds them there has the memory that was offered."""


Lane = Literal["inline", "shm", "cuda-ipc"]
"""How tensors travel: in messages, in memory of the host, in memory of a GPU."""


class Segment(ABC):
    """A range of memory that another process has, too. A kind has `create`, `offer` and `attach` besides.

    Args:
        device: where tensors in it are.
        num_bytes: its size.
    """

    lane: ClassVar[Lane]
    """How tensors in it travel."""

    def __init__(self, device: torch.device, num_bytes: int) -> None:
        self.device = device
        self.num_bytes = num_bytes

    @abstractmethod
    def end_offer(self) -> None:
        """Take note that the offer was answered. Idempotent."""

    @abstractmethod
    def tensor(self, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """Return a range as a tensor that shares it."""

    @abstractmethod
    def settle(self) -> None:
        """Return once what this thread has written here is there for the other process to read."""

    def read(
        self, wire: tensor_pb2.Tensor, *, dtype: torch.dtype, shape: Sequence[int | None], name: str = "tensor"
    ) -> Tensor:
        """Return a tensor that lies here as a view of it, after checking it as `decode_tensor` would.

        Raises:
            BadTensor: dtype, rank, an extent or the range is not what was expected.
        """
        found_shape = check_form(wire, dtype=dtype, shape=shape, name=name)
        place = wire.shared
        num_bytes = math.prod(found_shape) * dtype.itemsize
        is_inside = place.offset >= HEADER_BYTES and place.offset + place.num_bytes <= self.num_bytes
        if place.num_bytes != num_bytes or not num_bytes or place.offset % ALIGNMENT or not is_inside or wire.data:
            raise BadTensor(
                f"{name}: expected {num_bytes} bytes for shape {list(found_shape)} of {dtype} at a multiple of "
                f"{ALIGNMENT} between {HEADER_BYTES} and {self.num_bytes}, and no data beside them, found "
                f"{place.num_bytes} at {place.offset} and {len(wire.data)}: send one whole tensor per range"
            )
        return self.tensor(place.offset, dtype, found_shape)


def write_shared(wire: tensor_pb2.Tensor, tensor: Tensor, offset: int) -> None:
    """Fill an empty wire tensor with the form of one whose elements lie in a segment, at an offset."""
    wire.dtype = wire_dtype(tensor.dtype)
    wire.shape.extend(tensor.shape)
    wire.shared.offset = offset
    wire.shared.num_bytes = tensor.nbytes
