"""How a front door goes without turning anybody away: it says so, and listens on until that has been heard.

    serves --> leaves: health checks say no, whoever comes is served, HTTP connections end with their answer
                 `-- `limits.lame_duck_s` later at the earliest --> closes its ports, lets what runs finish

Load balancers look at health only now and then, and take a moment to act on it. A port that is closed before would
turn away whom they still send. Where the node is about to go, this begins long before the front door is told to stop:
as soon as there is another front door that stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cluster.service import InferenceService

_PERIOD_S = 1.0
"""Seconds between two looks for another front door."""


class LameDuck:
    """Belongs to the service's event loop.

    Args:
        service: says it.
        lame_duck_s: seconds that others have to hear it.
        node_id: Ray's name for the node of this front door.
        find_nodes: returns the nodes of all front doors that serve.
    """

    def __init__(
        self,
        service: InferenceService,
        lame_duck_s: float,
        node_id: str,
        find_nodes: Callable[[], Awaitable[frozenset[str]]],
    ) -> None:
        self._service = service
        self._lame_duck_s = lame_duck_s
        self._node_id = node_id
        self._find_nodes = find_nodes
        self._draining_nodes: frozenset[str] = frozenset()
        self._looking: asyncio.Task[None] | None = None
        self._left_at: float | None = None

    def note_draining(self, node_ids: frozenset[str]) -> None:
        """Take note of all nodes that are about to go."""
        self._draining_nodes = node_ids
        if self._node_id in node_ids and self._looking is None:
            self._looking = asyncio.create_task(self._leave_after_others_came())

    async def end(self) -> None:
        """Leave, and return when that has been heard."""
        if self._looking is not None:
            self._looking.cancel()
        left_at = self._leave()
        await asyncio.sleep(left_at + self._lame_duck_s - asyncio.get_running_loop().time())

    async def _leave_after_others_came(self) -> None:
        # Nobody could be sent elsewhere before: with health checks that say no, the only door would turn all away.
        while not await self._find_nodes() - self._draining_nodes:  # noqa: ASYNC110  others are asked, nobody tells
            await asyncio.sleep(_PERIOD_S)
        self._leave()

    def _leave(self) -> float:
        """Leave, unless that was done before; return when it was, by the loop's clock."""
        if self._left_at is None:
            self._left_at = asyncio.get_running_loop().time()
            self._service.leave()
        return self._left_at
