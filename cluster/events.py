"""What happened in the cluster lately, for people: the newest few events, in order."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

_REMEMBERED = 100


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterEvent:
    """Something that happened."""

    at_s: float
    """When, in seconds since 1970."""
    subject: str
    """To whom: a replica's name."""
    text: str
    """What, in a few words."""


class Events:
    """Remembers the newest events. Belongs to one thread.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._events: deque[ClusterEvent] = deque(maxlen=_REMEMBERED)

    def note(self, subject: str, text: str) -> None:
        """Remember that something happened now."""
        self._events.append(ClusterEvent(at_s=self._clock(), subject=subject, text=text))

    def newest(self) -> tuple[ClusterEvent, ...]:
        """Return what is remembered, oldest first."""
        return tuple(self._events)
