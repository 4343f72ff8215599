"""Streaming through Ray Serve's gRPC proxy, put right; docs/decisions/0001-ray-serve.md says what is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import grpc

from cluster.grpc.call import DetachedCall

Context = grpc.aio.ServicerContext[Any, Any]
StreamHandler = Callable[[Any, Any], AsyncIterator[bytes]]
"""(request, context) -> messages."""


def corrected_stream(handler: StreamHandler) -> StreamHandler:
    """Return a streaming handler that always cancels and that sends no message beside a failure.

    * A client that goes while a message is being written makes grpc drop the generator it was writing from, and
      nothing tells the replica. So the replica's stream is read in a task, which is cancelled when the call ends and
      may outlive it by a moment. What was read and not yet written waits in memory: one answer at most.
    * Trailing metadata leaves a replica only beside a message. One that comes with a failure carries just that.
    """

    async def handle(request: Any, context: Context) -> AsyncGenerator[bytes, None]:
        messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        call = DetachedCall(context)

        async def read() -> None:
            try:
                async for message in handler(request, call):
                    if not call.code():
                        messages.put_nowait(message)
            finally:
                messages.put_nowait(None)

        reading = asyncio.create_task(read())

        def stop_reading() -> None:
            if not reading.cancelling():  # a second time would cut its cleaning up short
                reading.cancel()

        context.add_done_callback(lambda _: stop_reading())  # type: ignore[arg-type]  # the stub's fault
        try:
            while (message := await messages.get()) is not None:
                yield message
            await reading
            call.apply(context)
        finally:
            stop_reading()

    return handle
