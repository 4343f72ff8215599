"""The front door's end of the carriers: one stream per router in, every sequence's events out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable

from cluster.carrier import SILENCE_S, Packed, unpack
from protos.errors import InternalError, ReplicaUnavailable, ServingError
from router.request import Ended, EngineEvent

_LOG = logging.getLogger(__name__)

HOLD_PER_STREAM_S = 0.002
LONGEST_HOLD_S = 0.1
ATTACH_S = 5.0
"""Seconds a router has to begin a carrier."""

Carry = Callable[[str], AsyncGenerator[Packed, None]]
"""Begins a carrier from the router of that name; raises ServingError."""


def hold_s(num_streams: int) -> float:
    """Return the least time between two messages of a stream, in seconds.

    Every message costs the same, however few tokens it has. So a front door sends at most 500 a second to 50 streams,
    and to more of them ten a second each: a few streams get every token by itself, and many get several at once where
    tokens come faster than that.
    """
    return min(num_streams * HOLD_PER_STREAM_S, LONGEST_HOLD_S)


class Inbox:
    """Events of one sequence, for whoever follows it."""

    def __init__(self) -> None:
        self.replica_id: str | None = None
        """The router that accepted the sequence; None: none yet."""
        self.has_ended = False
        """True once its last event came."""
        self._held: list[EngineEvent] = []
        self._events: list[EngineEvent] = []
        self._error: ServingError | None = None
        self._was_given = False
        self._changed = asyncio.Event()

    @property
    def is_done(self) -> bool:
        """Tell whether its last event was taken."""
        return self.has_ended and not self._events

    def hold(self, events: list[EngineEvent]) -> None:
        """Keep events until `release`; the first ones and the last one are released at once."""
        self._held += events
        self.has_ended = isinstance(events[-1], Ended)
        if self.has_ended or not self._was_given:
            self.release()

    def release(self) -> None:
        """Give what is held to whoever takes."""
        if self._held:
            self._was_given = True
            self._events += self._held
            self._held = []
            self._changed.set()

    def fail(self, error: ServingError) -> None:
        """Raise an error in place of what has not come."""
        if not self.has_ended:
            self.release()
            self._error = error
            self._changed.set()

    async def take(self) -> list[EngineEvent]:
        """Return what was released since the last call, at least one event.

        Raises:
            ServingError: nothing more will come.
        """
        await self._changed.wait()
        if self._events:
            events, self._events = self._events, []
            if self._error is None:
                self._changed.clear()
            return events
        assert self._error is not None
        raise self._error


class CarrierReceiver:
    """Receives for all sequences of one front door. Belongs to one event loop.

    Args:
        carry: begins a carrier.
        silence_s: seconds without a word from a carrier after which its router is taken for gone.
    """

    def __init__(self, carry: Carry, silence_s: float = SILENCE_S) -> None:
        self._carry = carry
        self._silence_s = silence_s
        self._inboxes: dict[str, Inbox] = {}
        self._carriers: dict[str, asyncio.Task[None]] = {}

    def open(self, request_id: str) -> Inbox:
        """Receive for a sequence; to be called before a router hears of it."""
        self._inboxes[request_id] = Inbox()
        return self._inboxes[request_id]

    def follow(self, request_id: str, replica_id: str) -> None:
        """Take note of the router that accepted a sequence, and see to a carrier from there."""
        self._inboxes[request_id].replica_id = replica_id
        if replica_id not in self._carriers:
            self._carriers[replica_id] = asyncio.create_task(self._receive(replica_id))

    def close(self, request_id: str) -> None:
        """Receive no longer for a sequence."""
        self._inboxes.pop(request_id, None)

    async def _receive(self, replica_id: str) -> None:
        try:
            while self._waiting_for(replica_id):
                await self._receive_once(replica_id)
        except ServingError as error:
            self._fail(replica_id, error)
        except Exception as error:  # noqa: BLE001  whoever waits must be told
            _LOG.error("the carrier from router %s failed", replica_id, exc_info=error)
            self._fail(replica_id, InternalError(f"a carrier failed: {type(error).__name__}; please report it"))
        finally:
            del self._carriers[replica_id]

    async def _receive_once(self, replica_id: str) -> None:
        """Hand out what a carrier brings until the router ends it for want of sequences."""
        loop = asyncio.get_running_loop()
        pace = _Pace(self._release)
        batches = self._carry(replica_id)
        try:
            async with asyncio.timeout(ATTACH_S) as silence:
                await anext(batches)
                silence.reschedule(loop.time() + self._silence_s)
                async for batch in batches:
                    silence.reschedule(loop.time() + self._silence_s)
                    self._hand_out(batch)
                    pace.arrived(hold_s(len(self._inboxes)))
        except (TimeoutError, StopAsyncIteration) as error:
            raise ReplicaUnavailable(
                f"expected router {replica_id} to tell of its sequences, found it silent; send them to another"
            ) from error
        finally:
            pace.stop()
            await batches.aclose()

    def _hand_out(self, batch: Packed) -> None:
        for request_id, packed in batch:
            if inbox := self._inboxes.get(request_id):
                inbox.hold(unpack(packed))

    def _release(self) -> None:
        for inbox in self._inboxes.values():
            inbox.release()

    def _waiting_for(self, replica_id: str) -> list[Inbox]:
        return [each for each in self._inboxes.values() if each.replica_id == replica_id and not each.has_ended]

    def _fail(self, replica_id: str, error: ServingError) -> None:
        for inbox in self._waiting_for(replica_id):
            inbox.fail(error)


class _Pace:
    """Releases what arrives: at once when the last release is long ago, otherwise when it is."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release = release
        self._loop = asyncio.get_running_loop()
        self._released_at = -LONGEST_HOLD_S
        self._timer: asyncio.TimerHandle | None = None

    def arrived(self, hold_s: float) -> None:
        if self._timer is not None:
            return
        due_at = self._released_at + hold_s
        if due_at <= self._loop.time():
            self._now()
        else:
            self._timer = self._loop.call_at(due_at, self._now)

    def _now(self) -> None:
        self._timer = None
        self._released_at = self._loop.time()
        self._release()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
