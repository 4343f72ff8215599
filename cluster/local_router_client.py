"""A router client over an engine in this process: for one process, notebooks and tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress

from cluster.router_client import PlacementInfo, RouterLoad
from router.engine import Engine
from router.request import Ended, EngineEvent, GenerationRequest


class LocalRouterClient:
    """Implements RouterClient without a network.

    Args:
        engine: a started engine; whoever started it stops it.
        replica_id: name it is shown under.
    """

    def __init__(self, engine: Engine, replica_id: str = "local") -> None:
        self._engine = engine
        self._replica_id = replica_id

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[EngineEvent], None]:
        """Generate one sequence; see RouterClient."""
        inbox = EventInbox()
        self._engine.submit(request, inbox.put)
        try:
            yield []
            while True:
                events = await inbox.take()
                yield events
                if isinstance(events[-1], Ended):
                    return
        finally:
            self._engine.cancel(request.request_id)

    async def load(self) -> tuple[RouterLoad, ...]:
        """Return the engine's load."""
        return (RouterLoad(replica_id=self._replica_id, load=self._engine.load()),)

    async def describe(self) -> PlacementInfo:
        """Return an empty placement: the experts are in this process, or known only to the engine."""
        return PlacementInfo(version=0)


class EventInbox:
    """Carries events from the engine's thread to the event loop that made it.

    It has no bound, because the engine must not block; a sequence's `max_tokens` bounds it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: list[EngineEvent] = []
        self._arrived = asyncio.Event()

    def put(self, event: EngineEvent) -> None:
        """Hand over an event; for any thread, never blocks."""
        with suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._add, event)

    def _add(self, event: EngineEvent) -> None:
        self._events.append(event)
        self._arrived.set()

    async def take(self) -> list[EngineEvent]:
        """Return everything that arrived since the last call, at least one event."""
        await self._arrived.wait()
        self._arrived.clear()
        events, self._events = self._events, []
        return events
