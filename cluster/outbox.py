"""Events on their way from an engine's thread to an event loop, many sequences' together."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress

from router.request import EngineEvent

Events = dict[str, list[EngineEvent]]
"""By request id, each sequence's in its own order."""


class Outbox:
    """Collects events until they are taken. Belongs to the event loop that made it.

    However many events come before that loop gets to turn, it is woken once: a step ends with an event of every
    sequence, and a wakeup each would take the interpreter from the step loop as often. It has no bound, because the
    engine must not block; the sequences' `max_tokens` bound it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._arrived = asyncio.Event()
        self._lock = threading.Lock()
        self._events: Events = {}

    def put(self, request_id: str, event: EngineEvent) -> None:
        """Hand over an event; for any thread, never blocks."""
        with self._lock:
            is_first = not self._events
            self._events.setdefault(request_id, []).append(event)
        if is_first:
            with suppress(RuntimeError):  # the loop was closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._arrived.set)

    async def take(self) -> Events:
        """Return everything that arrived since the last call, at least one event."""
        await self._arrived.wait()
        self._arrived.clear()
        with self._lock:
            events, self._events = self._events, {}
        return events
