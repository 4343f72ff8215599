"""Makes whoever is refused again and again wait for it: refusing costs time that others' answers need."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

REFUSALS_PER_S = 100
"""Refused requests a second, of everybody together, that are told so at once; as many may come at a time."""
LONGEST_S = 1.0
"""Most seconds that one waits to be told."""


class RefusalPace:
    """A leaky bucket of refusals. A client that asks again as soon as it is refused is held to `REFUSALS_PER_S`.

    One with a thousand connections is held to a thousand a second; it takes those from `http.max_connections`.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._free_at = clock() - 1.0
        """When the last refusal will have leaked away."""

    def delay_s(self) -> float:
        """Count a refusal; return the seconds after which to tell it."""
        now = self._clock()
        full_at = now + 1.0
        self._free_at = min(max(self._free_at, now) + 1 / REFUSALS_PER_S, full_at + LONGEST_S)
        return max(self._free_at - full_at, 0.0)

    async def wait(self) -> None:
        """Count a refusal, and return when it may be told."""
        if delay_s := self.delay_s():
            await asyncio.sleep(delay_s)
