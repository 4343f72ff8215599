"""The interface between a router's step and the experts, wherever they are."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from router.plan import DispatchPlan


class PendingDispatch(Protocol):
    """A dispatch under way."""

    def wait(self) -> Tensor:
        """Return the experts' outputs [N, D] in the plan's order, once all have arrived.

        Raises:
            ReplicaError: no replica answered in time.
            WireError: a replica refused the dispatch as malformed: our bug.
        """


class Transport(Protocol):
    """Runs tokens through experts. Used by one step loop at a time."""

    def choose_replica(self, expert: int) -> str:
        """Name a replica that will run this logical expert now.

        Raises:
            NoReplica: none holds it and none came back in time.
        """

    def dispatch(self, layer: int, plan: DispatchPlan, hidden_ND: Tensor) -> PendingDispatch:
        """Start running tokens through their experts; returns at once.

        Args:
            layer: decoder layer, 0-based.
            plan: made with `choose_replica`.
            hidden_ND: [N, D] in the plan's order, already multiplied by the scores.
        """

    def close(self) -> None:
        """Give up connections and threads. Idempotent."""
