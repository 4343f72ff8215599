"""Where the scaling policies of an application meet: they run in one process, Ray Serve's controller, one by one.

Ray Serve asks each deployment's policy alone. What needs all of them is here: the budget they share, and what one must
know of another. A controller that restarts begins with an empty board; until every policy has been asked once, nothing
grows.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from cluster.scaling_budget import Want, share_budget
from cluster.scaling_to_zero import Activities


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What a deployment's policy found last."""

    want: Want
    """Replicas."""
    lateness: float = 0.0
    """Of its need; above 1 work waits too long."""
    ttft_s: float | None = None
    """Time to the first token that clients have seen lately; None: not known here."""
    activities: Activities | None = None
    """Of all front doors; None: not known here."""
    context_tokens: float | None = None
    """Tokens that the sequences of its routers may get on context shards; None: it has none, or they are not known."""
    absent_at: float = -math.inf
    """When none of its replicas ran, last, if it may have none."""


class ScalingBoard:
    """One entry per deployment."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def note(self, deployment: str, entry: Entry) -> None:
        """Write a deployment's entry."""
        self._entries[deployment] = entry

    def entry(self, deployment: str) -> Entry | None:
        """Return a deployment's entry; None: its policy has not been asked yet."""
        return self._entries.get(deployment)

    def share(self, deployment: str, deployments: Collection[str], budget: int) -> int:
        """Return the replicas a deployment may have now, with what the others have at this moment.

        Args:
            deployment: has an entry.
            deployments: all that share the budget.
            budget: what their replicas may cost together.
        """
        own = self._entries[deployment].want
        others = [name for name in deployments if name != deployment]
        if any(name not in self._entries for name in others):
            return min(own.wanted, own.present)
        share = share_budget({name: self._entries[name].want for name in deployments}, budget)[deployment]
        # Others may have been granted fewer than they have, and still have them.
        taken = sum(self._entries[name].want.present * self._entries[name].want.cost for name in others)
        room = (budget - taken) // own.cost if own.cost else share
        return min(share, max(room, min(own.present, share)))


_BOARDS: dict[str, ScalingBoard] = {}


def board_of(application: str) -> ScalingBoard:
    """Return the board of an application in this process."""
    return _BOARDS.setdefault(application, ScalingBoard())
