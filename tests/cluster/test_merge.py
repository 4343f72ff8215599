import asyncio
from contextlib import aclosing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.merge import merge, within
from protos.errors import DeadlineExceeded


class Sources:
    """Makes async generators and knows which are open."""

    def __init__(self) -> None:
        self.open = 0

    async def count(self, name, numbers, then=None):
        self.open += 1
        try:
            for number in numbers:
                await asyncio.sleep(0)
                yield name, number
            if then == "hold":
                await asyncio.get_running_loop().create_future()
            if then is not None:
                raise then
        finally:
            self.open -= 1


async def drain(source, limit=None) -> list:
    items = []
    async with aclosing(source):
        async for item in source:
            items.append(item)
            if len(items) == limit:
                break
    return items


@given(st.lists(st.integers(0, 5), max_size=5))
def test_every_item_arrives_once_and_in_its_sources_order(lengths):
    sources = Sources()
    items = asyncio.run(drain(merge([sources.count(name, range(length)) for name, length in enumerate(lengths)])))
    for name, length in enumerate(lengths):
        assert [number for source, number in items if source == name] == list(range(length))
    assert len(items) == sum(lengths)
    assert sources.open == 0


def test_a_silent_source_does_not_hold_up_the_others():
    sources = Sources()
    merged = merge([sources.count("silent", [], "hold"), sources.count("loud", range(3))])
    assert asyncio.run(drain(merged, limit=3)) == [("loud", 0), ("loud", 1), ("loud", 2)]
    assert sources.open == 0


def test_the_first_error_is_raised_after_the_items_before_it_and_closes_the_rest():
    async def collect(sources, items) -> None:
        async for item in merge([sources.count("a", [1, 2], KeyError("a")), sources.count("b", [], "hold")]):
            items.append(item)

    sources, items = Sources(), []
    with pytest.raises(KeyError):
        asyncio.run(collect(sources, items))
    assert items == [("a", 1), ("a", 2)]
    assert sources.open == 0


def test_a_deadline_ends_a_silent_source():
    sources = Sources()
    with pytest.raises(DeadlineExceeded):
        asyncio.run(drain(within(sources.count("a", [1], "hold"), 0.02)))
    assert sources.open == 0


def test_a_timeout_of_the_source_itself_is_not_taken_for_the_deadline():
    sources = Sources()
    with pytest.raises(TimeoutError):
        asyncio.run(drain(within(sources.count("a", [1], TimeoutError("disk")), 60)))


def test_a_deadline_does_not_interrupt_the_consumer():
    async def consume(sources) -> int:
        async with aclosing(within(sources.count("a", [1, 2]), 0.02)) as source:
            await anext(source)
            await asyncio.sleep(0.04)  # past the deadline: our own work goes on
            return 7

    sources = Sources()
    assert asyncio.run(consume(sources)) == 7
    assert sources.open == 0
