"""Runs several async generators at once and yields what they yield, as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TypeVar

from protos.errors import DeadlineExceeded

Item = TypeVar("Item")


async def merge(sources: Sequence[AsyncGenerator[Item, None]]) -> AsyncGenerator[Item, None]:
    """Yield every source's items, each source's in its own order; the first error of any source ends all.

    However this generator ends (exhausted, failed, closed, cancelled), every source is closed before it returns.
    Items wait in a queue without a bound: a source must be finite.
    """
    if len(sources) == 1:  # most requests: no task and no queue, which cost every token a turn of the loop
        async with aclosing(sources[0]) as source:
            async for each in source:
                yield each
        return
    inbox: asyncio.Queue[Item | asyncio.Task[None]] = asyncio.Queue()
    pumps = [asyncio.create_task(_pump(source, inbox.put_nowait)) for source in sources]
    for pump in pumps:
        pump.add_done_callback(inbox.put_nowait)
    try:
        num_open = len(pumps)
        while num_open:
            item = await inbox.get()
            if isinstance(item, asyncio.Task):
                item.result()
                num_open -= 1
            else:
                yield item
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def within(source: AsyncGenerator[Item, None], timeout_s: float) -> AsyncGenerator[Item, None]:
    """Yield a source's items until a deadline; the time a consumer takes between items counts, too.

    The source is closed at the end.

    Raises:
        DeadlineExceeded: the deadline passed while waiting for an item.
    """
    deadline = asyncio.get_running_loop().time() + timeout_s
    async with aclosing(source):
        while True:
            # The scope must not span the yield: it would cancel whatever the consumer awaits then.
            scope = asyncio.timeout_at(deadline)
            try:
                async with scope:
                    item = await anext(source)
            except StopAsyncIteration:
                return
            except TimeoutError as error:
                if not scope.expired():
                    raise
                raise DeadlineExceeded(
                    f"expected the request to finish within {timeout_s:g} s, found it unfinished; "
                    "allow more time or ask for fewer tokens"
                ) from error
            yield item


async def _pump(source: AsyncGenerator[Item, None], put: Callable[[Item], None]) -> None:
    async with aclosing(source):
        async for item in source:
            put(item)
