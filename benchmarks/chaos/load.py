"""A steady load of streams over the gRPC API: each worker asks again as soon as its stream ends.

Every worker has a connection of its own, to an address of its own: 127.0.0.2, 127.0.0.3, ... all lead to this machine,
and the server's end of a connection shows which it was. So `connections.py` can tell through which front door a
worker's streams run, where several share the port.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Iterable, Iterator, Sequence

import grpc

from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1 import inference_pb2_grpc

from .record import StreamRecord
from .requests import Request

_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # A front door that comes back is found within half a second, not after minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]
_PAUSE_S = 0.25
"""Seconds a worker waits after a failure."""


def worker_host(worker: int) -> str:
    """Return the address that a worker connects to."""
    return f"127.0.0.{worker + 2}"


class Load:
    """Workers in a thread with an event loop. `records` may be read at any time.

    Args:
        port: of the gRPC API, on this machine.
        requests: what to ask.
        workers: streams at once, at most 250.
        deadline_s: seconds after which a stream counts as failed.
        period_s: seconds from a worker's request to its next one, if that is done by then: a load that does not grow
            and shrink with the server's speed. None: it asks again at once.
    """

    def __init__(
        self,
        port: int,
        requests: Sequence[Request],
        workers: int,
        deadline_s: float = 120.0,
        period_s: float | None = None,
    ) -> None:
        self.records: list[StreamRecord] = []
        self._port = port
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
        address = f"{worker_host(worker)}:{self._port}"
        async with grpc.aio.insecure_channel(address, options=_OPTIONS) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            first_s = time.monotonic() + worker / self._workers * (self._period_s or 0)
            for turn in itertools.count():
                await self._wait_for_turn(first_s, turn)
                request = next(requests, None)
                if request is None or self._stopping.is_set():
                    return
                record = StreamRecord(number=request.number, worker=worker, began_s=time.monotonic())
                self.records.append(record)
                await self._stream(stub, request, record)
                if self._stopping.is_set():
                    return
                if record.error is not None:
                    await asyncio.sleep(_PAUSE_S)

    async def _wait_for_turn(self, first_s: float, turn: int) -> None:
        """Wait until a worker's next request is due."""
        due_s = first_s + turn * (self._period_s or 0)
        if (left_s := due_s - time.monotonic()) > 0:
            await asyncio.sleep(left_s)

    async def _stream(
        self, stub: inference_pb2_grpc.InferenceServiceStub, request: Request, record: StreamRecord
    ) -> None:
        """Run one stream to its end; a connection that is down is waited for, as careful clients do."""
        try:
            call = stub.Generate(request.message(), timeout=self._deadline_s, wait_for_ready=True)
            message: pb.GenerateResponse
            async for message in call:
                record.take(message, time.monotonic())
        except grpc.aio.AioRpcError as error:
            record.error = f"{error.code().name}: {error.details()}"
        record.ended_s = time.monotonic()
