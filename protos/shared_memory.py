"""A segment of memory that a router offers to a replica on its own host, for one stream's tensors.

An anonymous file (memfd), sealed so that nobody can shrink it under the other's feet, handed over as a descriptor in
/proc: nothing has a name, so nothing is left behind however the two end, and a small /dev/shm, as containers have, does
not matter. That two processes share a host is proven by opening it, not by names.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from protos.channel import MAX_MESSAGE_BYTES
from protos.expert.v1 import expert_pb2
from protos.segment import HEADER_BYTES, NONCE_BYTES, Segment


class SharedSegment(Segment):
    """A mapped segment. Made by `create` or `attach`.

    Args:
        memory: the mapping.
        fd: the descriptor to offer; None once closed, and at the end that was offered it.
    """

    lane = "shm"

    def __init__(self, memory: mmap.mmap, fd: int | None) -> None:
        super().__init__(torch.device("cpu"), len(memory))
        self._memory = memory
        self._fd = fd

    @classmethod
    def create(cls, num_bytes: int = MAX_MESSAGE_BYTES) -> SharedSegment | None:
        """Return a new segment, None where the system has none. Memory is taken only where something was written."""
        if not hasattr(os, "memfd_create"):
            return None
        fd = None
        try:
            fd = os.memfd_create("herd", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, num_bytes)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            memory = mmap.mmap(fd, num_bytes)
        except OSError:
            if fd is not None:
                os.close(fd)
            return None
        memory[:NONCE_BYTES] = secrets.token_bytes(NONCE_BYTES)
        return cls(memory, fd)

    @classmethod
    def attach(cls, offer: expert_pb2.SharedMemory) -> SharedSegment | None:
        """Return the segment another process offers, None if it is not to be had here."""
        if len(offer.nonce) != NONCE_BYTES or not HEADER_BYTES < offer.num_bytes <= MAX_MESSAGE_BYTES:
            return None
        try:
            # Not blocking: a descriptor of the same number in another container may be anything.
            fd = os.open(f"/proc/{offer.pid}/fd/{offer.fd}", os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            return None
        try:
            if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS != _SEALS or os.fstat(fd).st_size != offer.num_bytes:
                return None
            memory = mmap.mmap(fd, offer.num_bytes)
        except (OSError, ValueError):
            return None
        finally:
            os.close(fd)
        return cls(memory, None) if memory[:NONCE_BYTES] == offer.nonce else None

    def offer(self) -> expert_pb2.SharedMemory:
        """Return what `attach` wants to know. Holds until `end_offer`."""
        assert self._fd is not None
        nonce = self._memory[:NONCE_BYTES]
        return expert_pb2.SharedMemory(pid=os.getpid(), fd=self._fd, nonce=nonce, num_bytes=self.num_bytes)

    def end_offer(self) -> None:
        """Close the descriptor; what is mapped stays mapped, and Python's mmap keeps a descriptor of its own."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with suppress(OSError):
                os.close(fd)

    def tensor(self, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
        """Return a range as a CPU tensor that shares it."""
        count = math.prod(shape)
        return torch.frombuffer(self._memory, dtype=dtype, count=count, offset=offset).view(tuple(shape))

    def settle(self) -> None:
        """Return at once: what a thread has written, every process that has the memory reads."""


# Who was handed the file can neither shrink it, which would end the other with SIGBUS, nor undo that.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL if hasattr(fcntl, "F_SEAL_SHRINK") else 0
