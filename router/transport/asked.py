"""A share that is not answered as planned, and the ways in which it may be answered yet."""

from __future__ import annotations

from torch import Tensor

from router.plan import ReplicaShare
from router.transport.attempt import Attempt


class Way:
    """One way to have a share answered: by one replica, or by several together.

    Args:
        attempts: rows in order, together the share's.
    """

    __slots__ = ("attempts", "rows")

    def __init__(self, attempts: list[Attempt]) -> None:
        self.attempts = attempts
        self.rows: list[Tensor | None] = [None] * len(attempts)

    @property
    def is_answered(self) -> bool:
        """Tell whether all of its rows are there."""
        return None not in self.rows

    def abandon(self) -> None:
        """Drop the answers nobody will read."""
        for attempt in self.attempts:
            attempt.abandon()


class Asked:
    """A share that needs a closer look: the ways in which an answer is under way. The first to come is taken.

    Args:
        share: what was asked.
        way: the first one.
        hedge_after_s: seconds after which another one is tried as well.
    """

    __slots__ = ("hedge_at", "sent_at", "share", "ways")

    def __init__(self, share: ReplicaShare, way: Way, hedge_after_s: float) -> None:
        self.share = share
        self.ways = [way]
        self.sent_at = way.attempts[0].sent_at
        self.hedge_at = self.sent_at + hedge_after_s

    def waiting(self) -> list[tuple[Way, int]]:
        """Return (way, index of an attempt of it) for everything that is not answered."""
        return [(way, i) for way in self.ways for i, rows_nD in enumerate(way.rows) if rows_nD is None]
