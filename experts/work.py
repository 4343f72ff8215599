"""A dispatch inside a replica, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from protos.errors import ServingError


@dataclass(kw_only=True, slots=True)
class Outcome:
    """How a dispatch ended: with outputs or with an error, never both."""

    outputs_ND: Tensor | None = None
    """[N, D] in the dispatch's dtype and order."""
    error: ServingError | None = None
    queue_us: int = 0
    """Microseconds from arrival to the start of computing."""
    compute_us: int = 0
    """Microseconds computing the batch the dispatch was part of."""


@dataclass(kw_only=True, slots=True, eq=False)
class Work:
    """One dispatch, checked and ready to compute. Never changed, and not frozen: that doubles what making one takes."""

    layer: int
    """A MoE layer whose experts are held."""
    expert_ids: tuple[int, ...]
    """Held logical experts, strictly ascending."""
    token_counts: tuple[int, ...]
    """Rows of `hidden_ND` for each of `expert_ids`, all positive, summing to N."""
    num_tokens: int
    """N."""
    hidden_ND: Tensor
    """[N, D], sorted by expert; only read."""
    arrived_s: float
    """When it was read from its stream, on the batcher's clock."""
    deadline_s: float | None = None
    """When the answer stops being of use, on the batcher's clock; None: never."""
    stands_back: bool = False
    """Whether it is computed in pieces, between which others pass."""
    deliver: Callable[[Outcome], None]
    """Takes the outcome of work that had to wait, in the compute thread: it must not block and not raise."""
