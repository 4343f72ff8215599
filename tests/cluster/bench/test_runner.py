"""The runner against a target that answers as a test tells it to."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from cluster.bench.load import PlannedRequest
from cluster.bench.measurement import CallFailed, Measurement, Status
from cluster.bench.runner import Runner
from cluster.bench.target import Call, Clock

REFUSED = CallFailed("unreachable", "refused", is_unreachable=True)


class ScriptedTarget:
    """Notes the most calls at once, and when `expected` run; each does what `script` does with its index."""

    def __init__(self, script: Callable[[int], Awaitable[None]], expected: int = 1) -> None:
        self.script = script
        self.expected, self.started = expected, asyncio.Event()
        self.running = self.most = 0

    def prepare(self, request: PlannedRequest) -> Call:
        async def call(measurement: Measurement) -> None:
            self.running += 1
            self.most = max(self.most, self.running)
            if self.running == self.expected:
                self.started.set()
            try:
                await self.script(request.index)
                measurement.add_message(1.0, 1)
            finally:
                self.running -= 1

        return call


async def answer(index: int) -> None:
    for _ in range(3):
        await asyncio.sleep(0)


async def hang(index: int) -> None:
    await asyncio.get_running_loop().create_future()


async def refuse(index: int) -> None:
    raise REFUSED


def planned(count: int, at_s: float | None = None):
    return iter([PlannedRequest(index=index, at_s=at_s, prompt=[1], max_tokens=1) for index in range(count)])


def runner_of(target, timeout_s=30.0, give_up_s=30.0) -> Runner:
    return Runner(target, Clock(), timeout_s, give_up_s)


def statuses(runner: Runner) -> list[Status]:
    return [each.status for each in runner.measurements]


def test_a_closed_loop_keeps_as_many_requests_running_as_it_has_clients():
    async def run() -> None:
        target = ScriptedTarget(answer)
        runner = runner_of(target)
        await runner.run_closed(planned(20), 3, None)
        assert target.most == 3
        assert statuses(runner) == [Status.OK] * 20
        assert (runner.num_done, runner.num_failed, runner.in_flight) == (20, 0, set())

    asyncio.run(run())


def test_a_closed_loop_sends_nothing_after_its_duration():
    async def run() -> None:
        runner = runner_of(ScriptedTarget(answer))
        await runner.run_closed(planned(5), 2, 1e-9)
        assert runner.measurements == []

    asyncio.run(run())


def test_an_open_loop_does_not_wait_and_counts_what_it_cannot_send():
    async def run() -> None:
        target = ScriptedTarget(hang, expected=4)
        runner = runner_of(target)
        running = asyncio.create_task(runner.run_open(planned(7, at_s=0.0), 4))
        async with asyncio.timeout(30):
            await target.started.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        found = sorted(statuses(runner))
        assert found == [Status.INTERRUPTED] * 4 + [Status.NOT_SENT] * 3
        assert (target.most, target.running) == (4, 0)
        assert all(each.end_s >= each.sent_s for each in runner.measurements)

    asyncio.run(run())


def test_an_open_loop_sends_no_request_before_its_time():
    async def run() -> None:
        runner = runner_of(ScriptedTarget(answer))
        await runner.run_open(planned(3, at_s=0.05), 10)
        assert all(each.sent_s >= 0.05 for each in runner.measurements)

    asyncio.run(run())


def test_a_request_that_takes_too_long_ends_as_a_timeout():
    async def run() -> None:
        runner = runner_of(ScriptedTarget(hang), timeout_s=0.01)
        await runner.run_closed(planned(2), 2, None)
        assert [each.error.kind for each in runner.measurements] == ["timeout", "timeout"]
        assert runner.num_failed == 2

    asyncio.run(run())


def test_an_answer_without_a_token_is_a_failure():
    class Silent:
        def prepare(self, request: PlannedRequest) -> Call:
            return lambda measurement: asyncio.sleep(0)

    async def run() -> None:
        runner = runner_of(Silent())
        await runner.run_closed(planned(1), 1, None)
        assert runner.measurements[0].error.kind == "empty"

    asyncio.run(run())


def test_a_server_that_comes_back_in_time_is_asked_on():
    async def refuse_once(index: int) -> None:
        if index == 0:
            raise REFUSED

    async def run() -> None:
        runner = runner_of(ScriptedTarget(refuse_once))
        await runner.run_closed(planned(3), 1, None)
        assert statuses(runner) == [Status.FAILED, Status.OK, Status.OK]
        assert not runner.gave_up

    asyncio.run(run())


@pytest.mark.parametrize("way", ["closed", "open"])
def test_a_server_that_stays_away_ends_the_run(way):
    async def run() -> None:
        runner = runner_of(ScriptedTarget(refuse), give_up_s=0.0)
        if way == "closed":
            await runner.run_closed(planned(1000), 1, None)
        else:
            later = [PlannedRequest(index=1, at_s=1e6, prompt=[1], max_tokens=1)]
            await runner.run_open(iter([*planned(1, at_s=0.0), *later]), 10)
        assert runner.gave_up
        assert statuses(runner) == [Status.FAILED]

    asyncio.run(run())
