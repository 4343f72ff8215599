"""Sends the requests of a load and measures each: as clients that wait, or when their time has come."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from cluster.bench.load import PlannedRequest
from cluster.bench.measurement import CallFailed, Measurement, Status
from cluster.bench.target import Call, Clock, Target

UNREACHABLE_PAUSE_S = 0.1
"""A client that finds nobody waits so long: it would go through the load in no time."""


class Runner:
    """Runs one load against one target.

    Args:
        target: who is asked.
        clock: started when the run does.
        timeout_s: each request's deadline.
        give_up_s: after so long without anybody to connect to, the run ends.
    """

    def __init__(self, target: Target, clock: Clock, timeout_s: float, give_up_s: float) -> None:
        self._target, self._clock = target, clock
        self._timeout_s, self._give_up_s = timeout_s, give_up_s
        self._unreachable_since_s: float | None = None
        self._gone = asyncio.Event()
        self.measurements: list[Measurement] = []
        """In the order of sending."""
        self.in_flight: set[int] = set()
        """Indices of the requests that run."""
        self.num_done = 0
        """Requests that ended, for whatever reason."""
        self.num_failed = 0
        """Those of them that failed or were not sent."""

    @property
    def gave_up(self) -> bool:
        """Tell whether the run ended because nobody was there any more."""
        return self._gone.is_set()

    async def run_closed(self, requests: Iterator[PlannedRequest], concurrency: int, duration_s: float | None) -> None:
        """Send each request when one of `concurrency` clients is free; none after `duration_s`."""

        async def be_client() -> None:
            while (duration_s is None or self._clock.now_s() < duration_s) and not self.gave_up:
                request = next(requests, None)
                if request is None:
                    return
                measurement = await self._ask(request, self._target.prepare(request))
                if measurement.error and measurement.error.is_unreachable:
                    await asyncio.sleep(UNREACHABLE_PAUSE_S)

        async with asyncio.TaskGroup() as clients:
            for _ in range(concurrency):
                clients.create_task(be_client())

    async def run_open(self, requests: Iterator[PlannedRequest], max_in_flight: int) -> None:
        """Send each request at its time; those that find `max_in_flight` others are not sent."""
        async with asyncio.TaskGroup() as sent:
            for request in requests:
                call = self._target.prepare(request)  # before its time has come
                await self._wait_until(request.at_s or 0.0)
                if self.gave_up:
                    return
                if len(self.in_flight) >= max_in_flight:
                    self._note_not_sent(request)
                else:
                    self.in_flight.add(request.index)
                    sent.create_task(self._ask(request, call))

    async def _wait_until(self, at_s: float) -> None:
        while (left_s := at_s - self._clock.now_s()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    await self._gone.wait()
                    return
            except TimeoutError:
                continue

    async def _ask(self, request: PlannedRequest, call: Call) -> Measurement:
        measurement = self._measure(request)
        self.in_flight.add(request.index)
        try:
            async with asyncio.timeout(self._timeout_s):
                await call(measurement)
            if not measurement.message_s:
                raise CallFailed("empty", "the answer ended without a token")
            measurement.status = Status.OK
        except CallFailed as error:
            self._note_failure(measurement, error)
        except TimeoutError:
            self._note_failure(measurement, CallFailed("timeout", f"no end within {self._timeout_s:g} s"))
        finally:
            measurement.end_s = self._clock.now_s()
            self.in_flight.discard(request.index)
            self.num_done += 1
        self._watch_for_the_end(measurement)
        return measurement

    def _measure(self, request: PlannedRequest) -> Measurement:
        measurement = Measurement(
            index=request.index,
            prompt_tokens=request.prompt_tokens,
            max_tokens=request.max_tokens,
            scheduled_s=request.at_s,
            sent_s=self._clock.now_s(),
        )
        self.measurements.append(measurement)
        return measurement

    def _note_failure(self, measurement: Measurement, error: CallFailed) -> None:
        measurement.status, measurement.error = Status.FAILED, error
        self.num_failed += 1

    def _note_not_sent(self, request: PlannedRequest) -> None:
        measurement = self._measure(request)
        measurement.status, measurement.end_s = Status.NOT_SENT, measurement.sent_s
        self.num_done += 1
        self.num_failed += 1

    def _watch_for_the_end(self, measurement: Measurement) -> None:
        if measurement.error is None or not measurement.error.is_unreachable:
            self._unreachable_since_s = None
            return
        if self._unreachable_since_s is None:
            self._unreachable_since_s = measurement.sent_s
        if measurement.end_s - self._unreachable_since_s >= self._give_up_s:
            self._gone.set()
