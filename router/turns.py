"""In which order tenants' sequences get slots: each tenant in turn."""

from __future__ import annotations

from collections.abc import Iterable


def next_turn(tenant: str, waiting: Iterable[tuple[str, int]], started: Iterable[int]) -> int:
    """Return the turn of a sequence that begins to wait: whoever has the lowest gets the next slot.

    It is the one after its tenant's last, but at least that of whoever is next. So nobody gains by asking for many at
    once, nobody loses by having been away or by giving up, and everybody's turn is the lowest at last. With one tenant,
    turns are in order of arrival. This is start-time fair queueing (Goyal, Vin and Cheng, 1996) with sequences of equal
    cost, reckoned from who is there instead of kept.

    Args:
        tenant: whose it is.
        waiting: tenant and turn of those that wait and go neither before it nor after it in any case.
        started: turns of those of them that have a slot.
    """
    others = list(waiting)
    own = max((turn for whose, turn in others if whose == tenant), default=-1)
    now = min((turn for _, turn in others), default=max(started, default=0))
    return max(own + 1, now)
