"""The interface between a router's step and the experts, wherever they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from protos.errors import NoReplica
from router.plan import DispatchPlan
from router.spread import Assignment
from router.trace import StepSpan

WAIT_STEP_S = 0.25
"""Longest time between two calls of `Transport.on_wait`, in seconds: also how late a wait may be given up."""


class StepAbandoned(Exception):
    """Nobody is left who wants the step that waits; raised by `Transport.on_wait`."""


class PendingDispatch(Protocol):
    """A dispatch under way."""

    @property
    def num_neighbours(self) -> int:
        """Return how many replicas compute it on this host's cores."""

    def wait(self) -> Tensor:
        """Return the experts' outputs [N, D] in the plan's order, once all have arrived.

        Raises:
            ReplicaError: no replica answered in time.
            WireError: a replica refused the dispatch as malformed: our bug.
            StepAbandoned: raised by `Transport.on_wait`.
        """

    def give_up(self) -> None:
        """Forget what has not been waited for. Idempotent; without effect after `wait`."""


class Transport(Protocol):
    """Runs tokens through experts. Used by one step loop at a time."""

    on_wait: Callable[[], None]
    """Set by the step loop and called in its thread, again and again, while any call below waits for a replica. What
    it raises ends the wait."""
    trace: StepSpan | None
    """Set by the step loop while a traced step computes: what its dispatches belong to. Else None."""

    @property
    def lacking(self) -> NoReplica | None:
        """Return what is missing while a call waits for an expert that nobody holds, for `on_wait`; else None."""

    def assign(self, token_counts: Mapping[int, int]) -> Assignment:
        """Say which replicas run the tokens of a layer's experts now.

        Args:
            token_counts: by logical expert, all positive.

        Raises:
            NoReplica: none holds an expert and none came back in time.
            StepAbandoned: raised by `on_wait`.
        """

    def dispatch(self, layer: int, plan: DispatchPlan, hidden_ND: Tensor) -> PendingDispatch:
        """Start running tokens through their experts; returns at once unless a chosen replica has gone.

        Args:
            layer: decoder layer, 0-based.
            plan: made with `assign`.
            hidden_ND: [N, D] in the plan's order, already multiplied by the scores.

        Raises:
            NoReplica: a chosen replica has gone and no other holder came in time.
            StepAbandoned: raised by `on_wait`.
        """

    def close(self) -> None:
        """Give up connections and threads; a wait under way ends with NoReplica. Idempotent."""
