"""The two ports of a front door, opened and closed."""

from __future__ import annotations

import asyncio
import http.client
import json
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
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1 import inference_pb2_grpc


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


def ask_http(settings, method: str = "GET", path: str = "/health", body: object = None) -> tuple[int, str | None]:
    """Ask on a new connection; return the status, and what the answer says of the connection."""
    connection = http.client.HTTPConnection("127.0.0.1", settings.http.port, timeout=30)
    try:
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.headers["connection"]
    finally:
        connection.close()


def http_status(settings) -> int:
    return ask_http(settings)[0]


def grpc_status(settings) -> int:
    with grpc.insecure_channel(f"127.0.0.1:{settings.grpc.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(), timeout=30).status


def generate(settings) -> list[pb.GenerateResponse]:
    with grpc.insecure_channel(f"127.0.0.1:{settings.grpc.port}") as channel:
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        return list(stub.Generate(pb.GenerateRequest(prompt="hi", stopping=pb.Stopping(max_tokens=3)), timeout=30))


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


def test_a_front_door_that_leaves_serves_whoever_comes_and_its_health_checks_say_no(router, text_model, settings):
    async def test():
        service = InferenceService(text_model, router)
        async with listening(service, settings):
            assert await asyncio.to_thread(ask_http, settings) == (200, None)
            service.leave()
            assert await asyncio.to_thread(ask_http, settings) == (503, "close")
            assert await asyncio.to_thread(grpc_status, settings) == health_pb2.HealthCheckResponse.NOT_SERVING
            body = {"prompt": "hi", "max_tokens": 3}
            assert await asyncio.to_thread(ask_http, settings, "POST", "/v1/completions", body) == (200, "close")
            assert (await asyncio.to_thread(generate, settings))[-1].WhichOneof("event") == "finished"

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
