"""The proxy's corrections on a real grpc.aio server: what is lost without them, and that with them nothing is."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import grpc
import pytest

from cluster.grpc.stream import corrected_stream

METHOD = "/test.Service/Stream"
WAIT_S = 20
BIG = b"x" * 100_000


class Replica:
    """A streaming handler that tells how it ended."""

    def __init__(self, num_messages: int = 10_000) -> None:
        self.num_messages = num_messages
        self.ended = threading.Event()
        self.was_cancelled = False
        self.peer_after = ""

    async def stream(self, request: bytes, context: grpc.aio.ServicerContext):
        try:
            for _ in range(self.num_messages):
                yield BIG
                await asyncio.sleep(0)
            await asyncio.sleep(WAIT_S)
        except asyncio.CancelledError:
            self.was_cancelled = True
        finally:
            await asyncio.sleep(0.05)
            self.peer_after = context.peer()  # what Serve's access log asks, after the call
            self.ended.set()


async def failing(request: bytes, context: grpc.aio.ServicerContext):
    """Fail as a front door does: the status rides on a message."""
    yield b"one"
    context.set_code(grpc.StatusCode.RESOURCE_EXHAUSTED)
    context.set_details("full")
    context.set_trailing_metadata((("herd-error-bin", b"why"),))
    yield b""


async def with_server(handler, client: Callable[[grpc.aio.Channel], Awaitable[None]]) -> None:
    server = grpc.aio.server()
    method = grpc.unary_stream_rpc_method_handler(handler)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {"Stream": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            await client(channel)
    finally:
        await server.stop(0)


def cancel_after(num_messages: int, replica: Replica):
    async def client(channel: grpc.aio.Channel) -> None:
        call = channel.unary_stream(METHOD)(b"")
        for _ in range(num_messages):
            await call.read()
        call.cancel()
        assert await asyncio.to_thread(replica.ended.wait, WAIT_S / 2)

    return client


def test_a_client_that_goes_while_it_is_written_to_cancels_the_replica():
    # 10,000 messages of 100 kB never fit the connection's window: the server is stuck in a write.
    replica = Replica()
    asyncio.run(with_server(corrected_stream(replica.stream), cancel_after(1, replica)))
    assert replica.was_cancelled


def test_a_client_that_goes_between_messages_cancels_the_replica():
    replica = Replica(num_messages=2)
    asyncio.run(with_server(corrected_stream(replica.stream), cancel_after(2, replica)))
    assert replica.was_cancelled


def test_the_call_can_be_asked_about_after_its_end():
    replica = Replica()
    asyncio.run(with_server(corrected_stream(replica.stream), cancel_after(1, replica)))
    assert replica.peer_after.startswith("ipv4:127.0.0.1")


def test_a_failure_keeps_its_status_and_metadata_and_loses_its_message():
    async def client(channel: grpc.aio.Channel) -> None:
        call = channel.unary_stream(METHOD)(b"")
        assert await call.read() == b"one"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "full"
        assert dict(caught.value.trailing_metadata())["herd-error-bin"] == b"why"

    asyncio.run(with_server(corrected_stream(failing), client))


def test_a_stream_that_ends_well_is_passed_on_whole():
    async def counting(request: bytes, context: grpc.aio.ServicerContext):
        for number in range(5):
            yield bytes([number])

    received: list[bytes] = []

    async def client(channel: grpc.aio.Channel) -> None:
        async for message in channel.unary_stream(METHOD)(b""):
            received.append(message)

    asyncio.run(with_server(corrected_stream(counting), client))
    assert received == [bytes([number]) for number in range(5)]
