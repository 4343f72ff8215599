"""The line of a length class, before a pool with as much room as a test says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import pytest

from cluster.class_queue import ClassQueue, Turn
from protos.errors import NoReplica, Overloaded
from router.request import Ended, EngineEvent, GenerationRequest
from tests.clock import Clock

DEADLINE_S = 20.0


class RoomyPool:
    """Accepts so many sequences at once and ends each when it is told to."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.accepted: list[str] = []
        self.num_asked = 0
        self._ends: dict[str, asyncio.Event] = {}

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[EngineEvent], None]:
        self.num_asked += 1
        if len(self._ends) >= self.room:
            raise Overloaded("expected room, found none")
        self.accepted.append(request.request_id)
        self._ends[request.request_id] = asyncio.Event()
        try:
            yield []
            await self._ends[request.request_id].wait()
            yield [Ended(reason="length")]
        finally:
            del self._ends[request.request_id]

    def end(self, request_id: str) -> None:
        self._ends[request_id].set()


class Line:
    """A queue before a pool, and the tasks of those who are in it."""

    def __init__(self, room: int, ask_again_s: float = DEADLINE_S) -> None:
        self.pool, self.clock = RoomyPool(room), Clock()
        self.queue = ClassQueue(self.pool.generate, ask_again_s=ask_again_s, clock=self.clock)
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.turns: dict[str, Turn] = {}

    def join(self, name: str, num_prompt: int = 10, priority: int = 0, tenant: str = "") -> None:
        request = GenerationRequest(
            request_id=name, prompt_ids=tuple(range(num_prompt)), max_tokens=1, priority=priority, tenant=tenant
        )
        self.turns[name] = self.queue.join(request)
        self.tasks[name] = asyncio.create_task(self._follow(request, self.turns[name]))

    async def _follow(self, request: GenerationRequest, turn: Turn) -> None:
        try:
            async with aclosing(turn.generate(request)) as batches:
                async for batch in batches:
                    turn.is_complete = bool(batch)
        finally:
            turn.leave()

    async def settle(self, accepted: list[str]) -> None:
        """Wait until these were accepted, in this order, and nobody else is."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.pool.accepted) < len(accepted):  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.001)
        for _ in range(20):
            await asyncio.sleep(0)
        assert self.pool.accepted == accepted

    def positions(self) -> dict[str, int]:
        return {name: turn.position for name, turn in self.turns.items()}

    async def end_all(self) -> None:
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)


def run(scenario, *args, **options) -> None:
    async def scene() -> None:
        line = Line(*args, **options)
        try:
            await scenario(line)
        finally:
            await line.end_all()

    asyncio.run(scene())


def test_room_goes_to_who_came_first_and_each_is_told_its_place():
    async def scenario(line: Line) -> None:
        for name in "abcd":
            line.join(name)
        await line.settle(["a", "b"])
        assert line.positions() == {"a": 0, "b": 0, "c": 1, "d": 2}
        line.pool.end("b")
        await line.settle(["a", "b", "c"])
        assert line.positions() == {"a": 0, "b": 0, "c": 0, "d": 1}

    run(scenario, room=2)


def test_a_better_priority_goes_first():
    async def scenario(line: Line) -> None:
        line.join("a")
        await line.settle(["a"])
        line.join("b")
        line.join("c", priority=-1)
        assert line.positions() == {"a": 0, "b": 2, "c": 1}
        line.pool.end("a")
        await line.settle(["a", "c"])

    run(scenario, room=1)


def test_tenants_get_room_in_turn():
    async def scenario(line: Line) -> None:
        for name in "abcd":
            line.join(name, tenant="many")
        line.join("e", tenant="few")
        await line.settle(["a"])
        for number, name in enumerate("aebcd", 1):
            await line.settle(list("aebcd"[:number]))
            line.pool.end(name)

    run(scenario, room=1)


def test_one_that_hangs_up_in_line_lets_the_next_pass():
    async def scenario(line: Line) -> None:
        for name in "abc":
            line.join(name)
        await line.settle(["a"])
        line.tasks["b"].cancel()
        await asyncio.gather(line.tasks["b"], return_exceptions=True)
        assert line.positions() == {"a": 0, "b": 0, "c": 1}
        line.pool.end("a")
        await line.settle(["a", "c"])

    run(scenario, room=1)


def test_full_routers_are_asked_again_though_nobody_here_left():
    async def scenario(line: Line) -> None:
        line.join("a")
        async with asyncio.timeout(DEADLINE_S):
            while line.pool.num_asked < 3:  # noqa: ASYNC110  nobody tells
                await asyncio.sleep(0.001)
        line.pool.room = 1
        await line.settle(["a"])

    run(scenario, room=0, ask_again_s=0.001)


def test_only_the_first_in_line_asks():
    async def scenario(line: Line) -> None:
        for name in "abcd":
            line.join(name)
        await line.settle(["a"])
        assert line.pool.num_asked == 2

    run(scenario, room=1)


def test_one_that_had_room_and_lost_its_router_is_the_next_in_line():
    async def scenario(line: Line) -> None:
        request = GenerationRequest(request_id="a", prompt_ids=(1,), max_tokens=1)
        turn = line.queue.join(request)
        lost = turn.generate(request)
        await anext(lost)
        line.join("b")
        replayed = turn.generate(replace(request, request_id="a~1"))
        again = asyncio.create_task(anext(replayed))
        await line.settle(["a"])
        assert (turn.position, line.positions()["b"]) == (1, 2)
        await lost.aclose()
        await again
        assert line.pool.accepted == ["a", "a~1"]
        await replayed.aclose()
        turn.leave()

    run(scenario, room=1, ask_again_s=0.01)


def test_a_refusal_for_another_reason_reaches_the_caller():
    async def refuse(request: GenerationRequest) -> AsyncGenerator[list[EngineEvent], None]:
        raise NoReplica("expected a router, found none")
        yield []

    async def scene() -> None:
        queue = ClassQueue(refuse)
        request = GenerationRequest(request_id="a", prompt_ids=(1,), max_tokens=1)
        turn = queue.join(request)
        with pytest.raises(NoReplica):
            await anext(turn.generate(request))
        turn.leave()

    asyncio.run(scene())


def test_the_start_is_expected_from_how_long_others_took_per_token():
    async def scenario(line: Line) -> None:
        line.join("a", num_prompt=10)
        line.join("b", num_prompt=40)
        line.join("c", num_prompt=10)
        await line.settle(["a"])
        assert line.turns["b"].expected_start_s is None
        line.clock.now += 5.0  # half a second per token
        line.pool.end("a")
        await line.settle(["a", "b"])
        line.join("d")
        assert line.turns["c"].expected_start_s == pytest.approx(20.0)
        assert line.turns["d"].expected_start_s == pytest.approx(25.0)
        line.clock.now += 8.0
        assert line.turns["c"].expected_start_s == pytest.approx(12.0)
        line.turns["b"].num_done = 10  # so slow: 24 s for the other 30
        assert line.turns["c"].expected_start_s == pytest.approx(24.0)

    run(scenario, room=1)


def test_one_that_was_cancelled_tells_nothing_of_how_long_others_take():
    async def scenario(line: Line) -> None:
        line.join("a")
        line.join("b")
        await line.settle(["a"])
        line.clock.now += 0.001
        line.tasks["a"].cancel()
        await line.settle(["a", "b"])
        line.join("c")
        assert line.turns["c"].expected_start_s is None

    run(scenario, room=1)


def test_the_time_in_line_is_over_for_the_router():
    async def scenario(line: Line) -> None:
        given: list[float | None] = []
        generate = line.pool.generate

        def noting(request: GenerationRequest) -> AsyncGenerator[list[EngineEvent], None]:
            given.append(request.timeout_s)
            return generate(request)

        line.queue._generate = noting
        line.join("a")
        await line.settle(["a"])
        line.clock.now += 2
        turn = line.queue.join(GenerationRequest(request_id="b", prompt_ids=(1,), max_tokens=1, timeout_s=5.0))
        line.clock.now += 3
        line.pool.end("a")
        await line.tasks["a"]
        asked = turn.generate(GenerationRequest(request_id="b", prompt_ids=(1,), max_tokens=1, timeout_s=5.0))
        await anext(asked)
        await asked.aclose()
        turn.leave()
        turn.leave()  # again is no harm
        assert given == [None, 2.0]

    run(scenario, room=1)
