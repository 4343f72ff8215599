"""Checksums of what crosses a network: TCP's own 16 bits let one damaged packet in 65,536 through, and nobody is told.

CRC-32 (ISO 3309, as in zlib) over a message's numbers as little-endian 64-bit integers, then its tensor's bytes. Of
tensors in shared memory, which cross no network, only where they lie is covered.
"""

from __future__ import annotations

import sys
import zlib
from array import array

from protos.expert.v1 import expert_pb2
from protos.tensor.v1 import tensor_pb2


def dispatch_checksum(dispatch: expert_pb2.Dispatch) -> int:
    """Return the checksum of a dispatch: of its id, layer, experts, counts and tokens."""
    numbers = [dispatch.dispatch_id, dispatch.layer, *dispatch.expert_ids, *dispatch.token_counts]
    return _checksum(numbers, dispatch.hidden)


def result_checksum(result: expert_pb2.DispatchResult) -> int:
    """Return the checksum of a result: of its id and its outputs."""
    return _checksum([result.dispatch_id], result.hidden)


def _checksum(numbers: list[int], tensor: tensor_pb2.Tensor) -> int:
    shared = tensor.shared
    words = array("Q", [*numbers, tensor.dtype, *tensor.shape, shared.offset, shared.num_bytes])
    if sys.byteorder == "big":
        words.byteswap()
    return zlib.crc32(tensor.data, zlib.crc32(words))
