"""How many threads a step's operators use on a CPU."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_FEW_TOKENS = 16
"""Most tokens of a step whose operators one thread runs faster than all: each takes microseconds, and to wake a thread
that sleeps takes fifty. Measured on two cores with two expert replicas, bfloat16, a model of 790 million parameters: a
step of 8 tokens 45 to 49 ms instead of 57 to 64; of one token, its experts in this process, 14 instead of 19; of 32 no
clear difference."""


@contextmanager
def threads_for(num_tokens: int) -> Iterator[None]:
    """Let a step of so many tokens use as many threads as suit it; afterwards there are as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if num_tokens <= _FEW_TOKENS else before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
