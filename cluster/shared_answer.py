"""One answer for everybody who asks within a while: ten open status pages cost the cluster what one does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Dated(Generic[Value]):
    """An answer and when it came."""

    value: Value
    at_s: float
    """Seconds since 1970."""


class SharedAnswer(Generic[Value]):
    """Asks a question at most once at a time, and not again while the answer is young enough for who asks.

    Belongs to one event loop. A failure is told to those who waited for it, and is not kept.

    Args:
        ask: asks; has a deadline of its own.
    """

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, Value]]) -> None:
        self._ask = ask
        self._asking: asyncio.Task[Dated[Value]] | None = None
        self._last: Dated[Value] | None = None

    async def get(self, max_age_s: float) -> Dated[Value]:
        """Return an answer at most so old; raise what asking for it raises."""
        if self._last is not None and 0 <= time.time() - self._last.at_s <= max_age_s:
            return self._last
        if self._asking is None:
            self._asking = asyncio.create_task(self._question())
            self._asking.add_done_callback(_see)
        # Whoever waits may be cancelled; the others still want the answer.
        return await asyncio.shield(self._asking)

    async def _question(self) -> Dated[Value]:
        try:
            self._last = Dated(await self._ask(), time.time())
            return self._last
        finally:
            self._asking = None


def _see(task: asyncio.Task[Any]) -> None:
    """Take note of a task's end, so that a failure that nobody waits for any more is no warning."""
    if not task.cancelled():
        task.exception()
