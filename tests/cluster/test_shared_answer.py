import asyncio
import time

import pytest

from cluster.shared_answer import SharedAnswer
from protos.errors import NoReplica


class Asked:
    """A question that is answered when the test says so."""

    def __init__(self) -> None:
        self.times = 0
        self.may_answer = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> int:
        self.times += 1
        await self.may_answer.wait()
        if self.error:
            raise self.error
        return self.times


def test_those_who_ask_together_share_one_question():
    async def scenario():
        asked = Asked()
        shared = SharedAnswer(asked)
        waiting = [asyncio.create_task(shared.get(0)) for _ in range(3)]
        await asyncio.sleep(0)
        asked.may_answer.set()
        return [each.value for each in await asyncio.gather(*waiting)]

    assert asyncio.run(scenario()) == [1, 1, 1]


def test_an_answer_serves_until_it_is_too_old_for_who_asks():
    async def scenario():
        asked = Asked()
        asked.may_answer.set()
        shared = SharedAnswer(asked)
        first = await shared.get(60)
        assert first.at_s == pytest.approx(time.time(), abs=30)
        return first.value, (await shared.get(60)).value, (await shared.get(-1)).value

    assert asyncio.run(scenario()) == (1, 1, 2)


def test_who_goes_away_does_not_take_the_answer_from_the_others():
    async def scenario():
        asked = Asked()
        shared = SharedAnswer(asked)
        gone, stays = asyncio.create_task(shared.get(0)), asyncio.create_task(shared.get(0))
        await asyncio.sleep(0)
        gone.cancel()
        asked.may_answer.set()
        return (await stays).value

    assert asyncio.run(scenario()) == 1


def test_a_failure_is_told_and_not_kept():
    async def scenario():
        asked = Asked()
        asked.may_answer.set()
        asked.error = NoReplica("none")
        shared = SharedAnswer(asked)
        with pytest.raises(NoReplica):
            await shared.get(60)
        asked.error = None
        return (await shared.get(60)).value

    assert asyncio.run(scenario()) == 2
