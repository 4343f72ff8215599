from __future__ import annotations

import asyncio

import pytest

from cluster.lame_duck import LameDuck
from cluster.service import InferenceService

LAME_DUCK_S = 0.3
HERE, THERE = "node-here", "node-there"


class FrontDoors:
    """Where front doors serve, and how often that was asked."""

    def __init__(self, *nodes: str) -> None:
        self.nodes = nodes
        self.num_questions = 0

    async def find(self) -> frozenset[str]:
        self.num_questions += 1
        return frozenset(self.nodes)


@pytest.fixture
def service(router, text_model) -> InferenceService:
    return InferenceService(text_model, router)


async def until(holds) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def test_a_front_door_that_is_told_to_stop_says_so_at_once_and_listens_on_for_its_lame_duck_time(service):
    async def test():
        duck = LameDuck(service, LAME_DUCK_S, HERE, FrontDoors().find)
        began = asyncio.get_running_loop().time()
        ending = asyncio.create_task(duck.end())
        await until(lambda: service.is_leaving)
        assert not ending.done()
        await ending
        assert asyncio.get_running_loop().time() - began >= LAME_DUCK_S

    asyncio.run(test())


def test_a_front_door_whose_node_goes_leaves_once_another_serves_on_a_node_that_stays(service):
    async def test():
        doors = FrontDoors(HERE)
        duck = LameDuck(service, LAME_DUCK_S, HERE, doors.find)
        duck.note_draining(frozenset({HERE}))
        await until(lambda: doors.num_questions)
        assert not service.is_leaving, "the only one: its clients could go nowhere else"
        doors.nodes = HERE, THERE
        await until(lambda: service.is_leaving)

    asyncio.run(test())


@pytest.mark.parametrize("draining", [{HERE, THERE}, {THERE}])
def test_a_front_door_stays_while_all_nodes_go_and_while_others_do(service, draining):
    async def test():
        duck = LameDuck(service, LAME_DUCK_S, HERE, FrontDoors(HERE, THERE).find)
        duck.note_draining(frozenset(draining))
        await asyncio.sleep(0.05)
        assert not service.is_leaving

    asyncio.run(test())


def test_a_front_door_that_has_left_before_it_is_told_to_stop_ends_no_later_for_it(service):
    async def test():
        duck = LameDuck(service, 60.0, HERE, FrontDoors(THERE).find)
        duck.note_draining(frozenset({HERE}))
        await until(lambda: service.is_leaving)
        duck._left_at -= 60  # a minute passes
        async with asyncio.timeout(20):
            await duck.end()

    asyncio.run(test())
