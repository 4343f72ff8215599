"""The two ports of a front door, opened and closed."""

from __future__ import annotations

import asyncio
import http.client
import socket
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.free_port import find_free_port
from cluster.config_source import load_config
from cluster.listeners import Listeners
from cluster.service import InferenceService
from protos.errors import BadConfig, InternalError


@pytest.fixture
def settings():
    http_port, grpc_port = find_free_port(), find_free_port()
    return load_config(None, ["http.host=127.0.0.1", f"http.port={http_port}", f"grpc.port={grpc_port}"])


@asynccontextmanager
async def listening(service, settings):
    listeners = Listeners(service, settings)
    await listeners.start()
    try:
        yield listeners
    finally:
        await listeners.stop(grace_s=10)


def http_status(settings) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", settings.http.port, timeout=30)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status
    finally:
        connection.close()


def grpc_status(settings) -> int:
    with grpc.insecure_channel(f"127.0.0.1:{settings.grpc.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(), timeout=30).status


def test_both_ports_answer_until_they_are_closed(router, text_model, settings):
    async def test():
        async with listening(InferenceService(text_model, router), settings) as listeners:
            listeners.check()
            assert await asyncio.to_thread(http_status, settings) == 200
            assert await asyncio.to_thread(grpc_status, settings) == health_pb2.HealthCheckResponse.SERVING
        with pytest.raises(ConnectionRefusedError):
            await asyncio.to_thread(http_status, settings)
        with pytest.raises(InternalError):
            listeners.check()

    asyncio.run(test())


def test_a_successor_listens_before_its_predecessor_has_gone(router, text_model, settings):
    async def test():
        service = InferenceService(text_model, router)
        async with listening(service, settings):
            async with listening(service, settings):
                assert await asyncio.to_thread(http_status, settings) == 200
            assert await asyncio.to_thread(http_status, settings) == 200

    asyncio.run(test())


def test_a_port_of_somebody_else_is_named(router, text_model, settings):
    async def test():
        with pytest.raises(BadConfig, match=f"http.port: expected a free port, found 127.0.0.1:{settings.http.port}"):
            await Listeners(InferenceService(text_model, router), settings).start()

    with socket.create_server(("127.0.0.1", settings.http.port)):
        asyncio.run(test())
