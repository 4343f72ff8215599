"""What the C library does with the memory of weights, so that it goes back to the system when they go."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# glibc's names of what `mallopt` sets.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_MIB = 1 << 20
# What glibc chooses by itself in a process that has freed a block of 32 MiB: it keeps what is smaller.
_USUAL_MMAP_BYTES, _USUAL_TRIM_BYTES = 32 * _MIB, 64 * _MIB


@contextmanager
def returnable_blocks() -> Iterator[None]:
    """Have blocks of 1 MiB or more that are allocated within given back to the system as soon as they are freed.

    Else threads that load leave them in pools of their own, which keep up to 64 MiB each: of 75 MB of released weights
    44 MB stayed (float32, glibc 2.36, 2026-11-21). Not for good: whoever computes frees such blocks all the time.
    Concerns the whole process. Other C libraries have no such setting and no such need.
    """
    # Once one is set, glibc chooses neither any more: with its first choice for trimming, 128 KiB, everything that is
    # computed with for a moment would be given back and taken again.
    _set(_TRIM_THRESHOLD, _USUAL_TRIM_BYTES)
    _set(_MMAP_THRESHOLD, _MIB)
    try:
        yield
    finally:
        _set(_MMAP_THRESHOLD, _USUAL_MMAP_BYTES)


def return_free_memory() -> None:
    """Give the system back what reading and packing left behind between the weights that stay.

    glibc keeps freed blocks for itself: 121 MB resident for 75 MB of weights, 77 MB after this (torch 2.13, x86-64
    Linux, 2026-11-21).
    """
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _set(what: int, num_bytes: int) -> None:
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(what, num_bytes)
