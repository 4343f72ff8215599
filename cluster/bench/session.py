"""One benchmark from settings to result: look at the server, warm it up, run the load."""

from __future__ import annotations

import asyncio
import gc
import resource
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from cluster.bench.client_watch import ClientWatch
from cluster.bench.load import Load, plan_load
from cluster.bench.measurement import Measurement, Status
from cluster.bench.runner import Runner
from cluster.bench.settings import ClosedLoop, Settings
from cluster.bench.target import Clock, ServerFacts, Target
from cluster.bench.target_grpc import GrpcTarget
from cluster.bench.target_openai import OpenAiTarget
from cluster.frozen_heap import freeze_heap
from protos.errors import InvalidRequest, ReplicaUnavailable, ServingError

_WARMUP_CONCURRENCY = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Everything a run found."""

    settings: Settings
    """What was asked for."""
    facts: ServerFacts
    """What the server said of itself."""
    started_at: datetime
    """Wall-clock time of the start, UTC."""
    duration_s: float
    """From the start to the end of the last request."""
    measurements: list[Measurement]
    """In the order of sending, without the warm-up."""
    num_clipped: int
    """Requests that were cut to the context."""
    lags_s: list[float]
    """How late the event loop woke; see ClientWatch."""
    cpu_cores: float
    """CPU seconds per second that this process took."""
    is_interrupted: bool
    """The user ended it."""
    gave_up: bool
    """It ended because nobody could be connected to any more."""


class Observer(Protocol):
    """Is told how a run goes on."""

    def on_warmup(self, facts: ServerFacts) -> None:
        """The server answered; the warm-up begins."""
        ...

    def on_start(self, load: Load, runner: Runner, clock: Clock) -> None:
        """The run begins; both arguments can be read from now on."""
        ...


async def run_bench(settings: Settings, stop: asyncio.Event, observer: Observer | None = None) -> Result:
    """Run a benchmark to its end, or until `stop` is set.

    Raises:
        ServingError: the settings are wrong, nobody answers, or no request of the warm-up succeeds.
    """
    settings.validate()
    _allow_open_files(settings)
    clock = Clock()
    async with _open_target(settings, clock) as target:
        facts = await target.inspect()
        load = plan_load(settings, facts.context_length)
        if observer:
            observer.on_warmup(facts)
        is_interrupted = await _unless_stopped(stop, _warm_up(settings, load, target))
        runner = Runner(target, clock, settings.timeout_s, settings.give_up_s)
        watch = ClientWatch()
        with _frozen_garbage(), watch.watching():
            started_at = datetime.now(UTC)
            clock.restart()
            if observer:
                observer.on_start(load, runner, clock)
            if not is_interrupted:
                is_interrupted = await _unless_stopped(stop, _run(settings, load, runner))
            duration_s, cpu_cores = clock.now_s(), watch.cpu_cores()
    return Result(
        settings=settings,
        facts=facts,
        started_at=started_at,
        duration_s=duration_s,
        measurements=runner.measurements,
        num_clipped=load.num_clipped,
        lags_s=list(watch.lags_s),
        cpu_cores=cpu_cores,
        is_interrupted=is_interrupted,
        gave_up=runner.gave_up,
    )


@asynccontextmanager
async def _open_target(settings: Settings, clock: Clock) -> AsyncIterator[Target]:
    target: Target
    if settings.endpoint.url is None:
        target = GrpcTarget(settings.endpoint, settings.timeout_s, clock)
    else:
        target = OpenAiTarget(settings.endpoint, clock)
    try:
        yield target
    finally:
        await target.close()


@contextmanager
def _frozen_garbage() -> Iterator[None]:
    """Keep the collector from looking, in the middle of a run, through what was there before it."""
    freeze_heap()
    try:
        yield
    finally:
        gc.unfreeze()


async def _run(settings: Settings, load: Load, runner: Runner) -> None:
    if isinstance(settings.arrival, ClosedLoop):
        await runner.run_closed(load.requests(), settings.arrival.concurrency, settings.duration_s)
    else:
        await runner.run_open(load.requests(), settings.max_in_flight)


async def _warm_up(settings: Settings, load: Load, target: Target) -> None:
    """Send the requests that do not count.

    Raises:
        ServingError: all of them failed: so would the others.
    """
    runner = Runner(target, Clock(), settings.timeout_s, settings.give_up_s)
    concurrency = _WARMUP_CONCURRENCY
    if isinstance(settings.arrival, ClosedLoop):
        concurrency = settings.arrival.concurrency
    await runner.run_closed(load.warmup(), concurrency, None)
    found = runner.measurements
    if found and not any(each.status is Status.OK for each in found):
        raise _explain(found[0])


def _explain(measurement: Measurement) -> ServingError:
    error = measurement.error
    assert error is not None
    kind = ReplicaUnavailable if error.is_unreachable else InvalidRequest
    return kind(
        f"expected an answer to the warm-up, found {error.kind}: {error.message.rstrip('.')}; change what is sent, see "
        "herd bench --help, or leave the warm-up out with --warmup 0"
    )


async def _unless_stopped(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Run a coroutine until it ends or `stop` is set, which cancels it; return whether it was stopped."""
    task = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return False
        task.cancel()
        await asyncio.wait({task})
        return True
    finally:
        stopping.cancel()
        task.cancel()


def _allow_open_files(settings: Settings) -> None:
    """Raise this process's limit of open files to what an open loop may need, as far as the system lets it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = settings.max_in_flight + 256
    if isinstance(settings.arrival, ClosedLoop):
        needed = settings.arrival.concurrency + 256
    if soft != resource.RLIM_INFINITY and soft < needed:
        limit = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
