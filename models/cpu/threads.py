"""How many threads the kernels use: as many as torch may, unless the calling thread says otherwise."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

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
