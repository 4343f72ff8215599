"""A steady load of streams: each worker asks again as soon as its stream ends."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager

from .record import StreamRecord
from .requests import Request

Ask = Callable[[Request, StreamRecord], Awaitable[None]]
"""Runs one stream until it has ended, well or not, and fills in its record."""

_PAUSE_S = 0.25
"""Seconds a worker waits after a failure."""


class SteadyLoad(ABC):
    """Workers in a thread with an event loop. `records` may be read at any time.

    Args:
        requests: what to ask.
        workers: streams at once.
        deadline_s: seconds after which a stream counts as failed.
        period_s: seconds from a worker's request to its next one, if that is done by then: a load that does not grow
            and shrink with the server's speed. None: it asks again at once.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        workers: int,
        deadline_s: float = 120.0,
        period_s: float | None = None,
    ) -> None:
        self.records: list[StreamRecord] = []
        self._requests = requests
        self._workers = workers
        self._deadline_s = deadline_s
        self._period_s = period_s
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def run_each_once(self) -> list[StreamRecord]:
        """Ask every request once, and return what came, in the list's order. Blocks.

        Raises:
            RuntimeError: one failed.
        """
        self._start(self._requests)
        self._join()
        records, self.records = sorted(self.records, key=lambda record: record.number), []
        if failed := [record for record in records if not record.is_complete]:
            raise RuntimeError(f"expected {len(records)} streams to end without faults, found {failed[0].error}")
        return records

    def start(self) -> None:
        """Ask the list's requests again and again until `stop`."""
        self._start(itertools.cycle(self._requests))

    def stop(self) -> None:
        """Ask nothing more; return when the last stream has ended, at its deadline at the latest."""
        self._stopping.set()
        self._join()

    @abstractmethod
    def _open(self, worker: int) -> AbstractAsyncContextManager[Ask]:
        """Give a worker its way to ask, until it has asked enough."""

    def _start(self, requests: Iterable[Request]) -> None:
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, args=(iter(requests),), name="load", daemon=True)
        self._thread.start()

    def _join(self) -> None:
        assert self._thread is not None
        # Every stream has a deadline, so the thread ends; the margin is for a machine that is slow to tell.
        longest_s = (len(self._requests) // self._workers + 1) * self._deadline_s + 60
        self._thread.join(longest_s)
        if self._thread.is_alive():
            raise TimeoutError(f"expected every stream to end within {longest_s:g} s, found some that run")
        if self._failure is not None:
            raise self._failure

    def _run(self, requests: Iterator[Request]) -> None:
        try:
            asyncio.run(self._work_all(requests))
        except BaseException as error:  # noqa: BLE001  raised again by whoever joins
            self._failure = error

    async def _work_all(self, requests: Iterator[Request]) -> None:
        await asyncio.gather(*(self._work(worker, requests) for worker in range(self._workers)))

    async def _work(self, worker: int, requests: Iterator[Request]) -> None:
        async with self._open(worker) as ask:
            first_s = time.monotonic() + worker / self._workers * (self._period_s or 0)
            for turn in itertools.count():
                await self._wait_for_turn(first_s, turn)
                request = next(requests, None)
                if request is None or self._stopping.is_set():
                    return
                record = StreamRecord(number=request.number, worker=worker, began_s=time.monotonic())
                self.records.append(record)
                await ask(request, record)
                if self._stopping.is_set():
                    return
                if record.error is not None:
                    await asyncio.sleep(_PAUSE_S)

    async def _wait_for_turn(self, first_s: float, turn: int) -> None:
        """Wait until a worker's next request is due."""
        due_s = first_s + turn * (self._period_s or 0)
        if (left_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(left_s)
