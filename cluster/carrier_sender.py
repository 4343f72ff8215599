"""The router's end of the carriers: runs sequences for front doors and sends each what its sequences bring."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import TYPE_CHECKING

from cluster.carrier import HEARTBEAT_S, Packed, pack
from cluster.outbox import Events, Outbox
from router.engine import Engine
from router.request import Emit, Ended, GenerationRequest
from router.step_watch import StepWatch
from router.transport.health import DispatchTimes

if TYPE_CHECKING:
    from cluster.tracing import Tracing

IDLE_S = 1.0
"""A carrier without sequences ends after so long: Ray Serve stops a router when its calls have ended, or by force."""


class CarrierSender:
    """Belongs to one event loop.

    Args:
        engine: a started engine; whoever started it stops it.
        watch: looks at the engine; one that is stuck ends the carriers, or their sequences would wait for it.
        replica_id: what front doors ask for to get a carrier of this router.
        idle_s: seconds after which a carrier without sequences ends.
        heartbeat_s: seconds without events after which a carrier says that there are none.
        tracing: makes spans of sequences; None: nobody does.
        times: for them, tells the answers of expert replicas so far.
    """

    def __init__(
        self,
        engine: Engine,
        watch: StepWatch,
        replica_id: str,
        *,
        idle_s: float = IDLE_S,
        heartbeat_s: float = HEARTBEAT_S,
        tracing: Tracing | None = None,
        times: Callable[[], DispatchTimes | None] = lambda: None,
    ) -> None:
        self._engine = engine
        self._watch = watch
        self._replica_id = replica_id
        self._idle_s = idle_s
        self._heartbeat_s = heartbeat_s
        self._tracing = tracing
        self._times = times
        self._doors: dict[str, _Door] = {}

    async def generate(self, request: GenerationRequest, door_id: str) -> AsyncGenerator[str, None]:
        """Run a sequence: yield this router's name once it is accepted, and end after its end was sent.

        Closing or cancelling frees what it holds. It ends early when its front door's carrier breaks.

        Raises:
            ServingError: the sequence is refused.
        """
        self._watch.check(time.monotonic())
        door = self._doors.setdefault(door_id, _Door())
        ended = door.open(request.request_id)
        span = self._tracing.sequence(request, self._replica_id, self._times) if self._tracing else None
        try:
            emit: Emit = partial(door.outbox.put, request.request_id)
            self._engine.submit(request, emit if span is None else span.watching(emit), span)
            yield self._replica_id
            await ended
        finally:
            self._engine.cancel(request.request_id)
            door.close(request.request_id)
            if door.is_unused:
                self._forget(door_id, door)
            if span is not None:
                span.end()

    async def carry(self, door_id: str) -> AsyncGenerator[Packed, None]:
        """Yield the events of all of a front door's sequences, in order; an empty batch first, and as a heartbeat.

        It ends when there has been no sequence for a while. One that is closed or cancelled ends all of them: their
        front door is gone, or has lost events.

        Raises:
            ReplicaUnavailable: the engine is stuck or has ended.
        """
        door = self._doors.setdefault(door_id, _Door())
        door.is_carried = True
        try:
            yield []
            while not door.is_idle_for(self._idle_s):
                events = await self._next_events(door)
                if not events:
                    self._watch.check(time.monotonic())
                yield pack(events)
                door.take_note(events)
        finally:
            self._forget(door_id, door)
            door.end_all()

    async def _next_events(self, door: _Door) -> Events:
        """Return the next events; none when it is time for a heartbeat."""
        try:
            async with asyncio.timeout(self._heartbeat_s):
                return await door.outbox.take()
        except TimeoutError:
            return {}

    def _forget(self, door_id: str, door: _Door) -> None:
        if self._doors.get(door_id) is door:
            del self._doors[door_id]


class _Door:
    """A front door's open sequences and what they have to tell it."""

    def __init__(self) -> None:
        self.outbox = Outbox()
        self.is_carried = False
        self._open: dict[str, asyncio.Future[None]] = {}
        self._loop = asyncio.get_running_loop()
        self._emptied_at = self._loop.time()

    def is_idle_for(self, seconds: float) -> bool:
        return not self._open and self._loop.time() >= self._emptied_at + seconds

    @property
    def is_unused(self) -> bool:
        return not self._open and not self.is_carried

    def open(self, request_id: str) -> asyncio.Future[None]:
        """Return what is done when the sequence's end was sent."""
        self._open[request_id] = self._loop.create_future()
        return self._open[request_id]

    def close(self, request_id: str) -> None:
        self._open.pop(request_id, None)
        self._emptied_at = self._loop.time()

    def take_note(self, sent: Events) -> None:
        for request_id, events in sent.items():
            if isinstance(events[-1], Ended) and request_id in self._open:
                self._end(self._open[request_id])

    def end_all(self) -> None:
        for ended in self._open.values():
            self._end(ended)

    @staticmethod
    def _end(ended: asyncio.Future[None]) -> None:
        if not ended.done():
            ended.set_result(None)
