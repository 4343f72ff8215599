"""In which order tenants' sequences get slots: each tenant in turn."""

from __future__ import annotations

from collections.abc import Iterable

Rank = tuple[int, int, int]
"""Who is served first: the lower priority number, then the lower turn, then who came first."""


def next_turn(priority: int, tenant: str, waiting: Iterable[tuple[Rank, str]], started: Iterable[Rank]) -> int:
    """Return the turn of a sequence that begins to wait: of equal priority, the lowest gets the next slot.

    It is the one after its tenant's last, but at least that of whoever is next. So nobody gains by asking for many at
    once, nobody loses by having been away or by giving up, and everybody's turn is the lowest at last. With one tenant,
    turns are in order of arrival. This is start-time fair queueing (Goyal, Vin and Cheng, 1996) with sequences of equal
    cost, reckoned from who is there instead of kept.

    Args:
        priority: of the sequence; those of others do not count.
        tenant: whose it is.
        waiting: rank and tenant of those that wait.
        started: ranks of those that have a slot.
    """
    others = [(turn, whose) for (its, turn, _), whose in waiting if its == priority]
    own = max((turn for turn, whose in others if whose == tenant), default=-1)
    latest = max((turn for its, turn, _ in started if its == priority), default=0)
    return max(own + 1, min((turn for turn, _ in others), default=latest))
