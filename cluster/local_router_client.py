"""A router client over an engine in this process: for one process, notebooks and tests."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial

from cluster.outbox import Outbox
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
        outbox = Outbox()
        self._engine.submit(request, partial(outbox.put, request.request_id))
        try:
            yield []
            while True:
                (events,) = (await outbox.take()).values()
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
