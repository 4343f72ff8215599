"""How many threads a step's operators use on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from models.cpu.threads import kernel_threads, num_kernel_threads

_FEW_TOKENS = 16
"""Most tokens of a step whose operators one thread runs faster than all: each takes microseconds, and to wake a thread
that sleeps takes fifty. Measured on two cores with two expert replicas, bfloat16, a model of 790 million parameters: a
step of 8 tokens 45 to 49 ms instead of 57 to 64; of one token, its experts in this process, 14 instead of 19; of 32 no
clear difference."""

_FEW_BESIDE_KERNELS = 64
"""The same where kernels of our own do all that is large."""


@contextmanager
def threads_for(num_tokens: int, *, by_kernel: bool) -> Iterator[None]:
    """Let a step of so many tokens use as many threads as suit it; afterwards there are as many as before.

    Kernels use all: their threads take part if they come in time, and nobody waits for them. What is left to torch's
    operators beside them is small: with all threads, 32 tokens' take 13 instead of 5 ms of a step.
    """
    before = torch.get_num_threads()
    few = _FEW_BESIDE_KERNELS if by_kernel else _FEW_TOKENS
    torch.set_num_threads(1 if num_tokens <= few else before)
    try:
        with kernel_threads(before):
            yield
    finally:
        torch.set_num_threads(before)


def threads_beside(num_neighbours: int) -> AbstractContextManager[None]:
    """Leave a core to each process that computes a part of the same layer: it is waited for."""
    return kernel_threads(max(num_kernel_threads() - num_neighbours, 1))
