"""A steady load over the gRPC API.

Every worker has a connection of its own, to an address of its own: 127.0.0.2, 127.0.0.3, ... all lead to this machine,
and the server's end of a connection shows which it was. So `connections.py` can tell through which front door a
worker's streams run, where several share the port.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import grpc

from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1 import inference_pb2_grpc

from .record import StreamRecord
from .requests import Request
from .steady_load import Ask, SteadyLoad

_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),
    # A front door that comes back is found within half a second, not after minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


def worker_host(worker: int) -> str:
    """Return the address that a worker connects to."""
    return f"127.0.0.{worker + 2}"


class Load(SteadyLoad):
    """Streams of a server.

    Args:
        port: of the gRPC API, on this machine.
        requests: what to ask.
        workers: streams at once, at most 250.
        deadline_s: seconds after which a stream counts as failed.
        period_s: as in SteadyLoad.
    """

    def __init__(
        self,
        port: int,
        requests: Sequence[Request],
        workers: int,
        deadline_s: float = 120.0,
        period_s: float | None = None,
    ) -> None:
        super().__init__(requests, workers, deadline_s, period_s)
        self._port = port

    @asynccontextmanager
    async def _open(self, worker: int) -> AsyncIterator[Ask]:
        async with grpc.aio.insecure_channel(f"{worker_host(worker)}:{self._port}", options=_OPTIONS) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)

            async def ask(request: Request, record: StreamRecord) -> None:
                """Run one stream to its end; a connection that is down is waited for, as careful clients do."""
                try:
                    call = stub.Generate(request.message(), timeout=self._deadline_s, wait_for_ready=True)
                    message: pb.GenerateResponse
                    async for message in call:
                        record.take(message, time.monotonic())
                except grpc.aio.AioRpcError as error:
                    record.error = f"{error.code().name}: {error.details()}"
                record.ended_s = time.monotonic()

            yield ask
