"""Runs inside Ray Serve's gRPC proxy: registers our services there, with two corrections to how it streams.

Ray Serve takes the import paths of these functions; why the corrections is docs/decisions/0001-ray-serve.md.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import grpc
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from ray.serve._private.grpc_util import gRPCGenericServer
from ray.serve._private.proxy_request_response import gRPCStreamingType

from cluster.grpc_call import DetachedCall
from protos.inference.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server

Context = grpc.aio.ServicerContext[Any, Any]
StreamHandler = Callable[[Any, Any], AsyncIterator[bytes]]


def add_inference_service(servicer: object, server: gRPCGenericServer) -> None:
    """Register herd.inference.v1.InferenceService."""
    _add(add_InferenceServiceServicer_to_server, servicer, server)


def add_health_service(servicer: object, server: gRPCGenericServer) -> None:
    """Register grpc.health.v1.Health."""
    _add(add_HealthServicer_to_server, servicer, server)


def _add(add_to_server: Callable[[Any, Any], None], servicer: object, server: gRPCGenericServer) -> None:
    make_handler = server.service_handler_factory

    def make_corrected_handler(service_method: str, streaming_type: gRPCStreamingType) -> Callable[..., Any]:
        handler: Callable[..., Any] = make_handler(service_method=service_method, streaming_type=streaming_type)
        return corrected_stream(handler) if streaming_type == gRPCStreamingType.UNARY_STREAM else handler

    server.service_handler_factory = make_corrected_handler
    try:
        add_to_server(servicer, server)
    finally:
        server.service_handler_factory = make_handler


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
        context.add_done_callback(lambda _: reading.cancel())  # type: ignore[arg-type]  # the stub's fault
        try:
            while (message := await messages.get()) is not None:
                yield message
            await reading
            call.apply(context)
        finally:
            reading.cancel()

    return handle
