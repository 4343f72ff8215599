"""How many threads the kernels use: as many as torch may, unless the calling thread says otherwise.

And how a thread keeps torch's own operators to itself.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

_own = threading.local()


def num_kernel_threads() -> int:
    """Return the number for a call from this thread."""
    number: int | None = getattr(_own, "number", None)
    return torch.get_num_threads() if number is None else number


@contextmanager
def kernel_threads(number: int) -> Iterator[None]:
    """Let calls from this thread use so many, whatever torch's operators use."""
    before = getattr(_own, "number", None)
    _own.number = number
    try:
        yield
    finally:
        _own.number = before


def compute_alone() -> None:
    """Let torch's operators, called from this thread from now on, use no other thread.

    `torch.set_num_threads` would say so to every thread that is yet to come. Without OpenMP, nothing changes.
    """
    torch.get_num_threads()  # the first call in a thread sets what comes from `torch.set_num_threads`: let it be past
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).omp_set_num_threads(1)
