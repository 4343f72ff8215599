"""Clients that go away: the sequences they started end, and what those held is free."""

import json
import socket
import time
from dataclasses import replace

import grpc
import pytest

from cluster.limits import FrontDoorLimits
from cluster.service import InferenceService
from protos.inference.v1.inference_pb2 import GetLoadRequest
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub
from tests.cluster.conftest import serve_engine
from tests.cluster.live_front_door import LiveFrontDoor
from tests.cluster.scripted_router import babbles, then_holds

FREE_WITHIN_S = 1.0


def start(door, **fields) -> socket.socket:
    """Send a completions request and return its connection, unread."""
    body = json.dumps({"prompt": [5], "max_tokens": 100, **fields}).encode()
    host, port = door.http_address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("tokens", [(), (72, 101)], ids=["before a token", "after tokens"])
def test_a_client_that_leaves_closes_its_sequences(text_model, router, stream, tokens):
    router.script = then_holds(*tokens)
    with LiveFrontDoor(InferenceService(text_model, router)) as door:
        connection = start(door, stream=stream, n=3)
        assert router.wait_until_open(3)
        if stream and tokens:
            assert connection.recv(100).startswith(b"HTTP/1.1 200 ")
        connection.close()
        assert router.wait_until_open(0)
    assert door.service.admission.num_sequences == door.service.admission.num_queued_prompt_tokens == 0
    counted = door.service.metrics.registry.get_sample_value
    assert counted("herd_requests_total", {"api": "completions", "code": "499"}) == 1


def test_a_client_that_leaves_with_its_connection_full_closes_its_sequences(text_model, router):
    router.script = babbles
    with LiveFrontDoor(InferenceService(text_model, router)) as door:
        connection = start(door, stream=True)  # and never read: the socket's buffers fill
        assert router.wait_until_open(1)
        assert connection.recv(1, socket.MSG_PEEK)
        connection.close()
        assert router.wait_until_open(0)


def test_a_client_that_stays_does_not_lose_its_answer_to_pipelined_bytes(door):
    connection = start(door)
    connection.sendall(b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    received = b""
    while part := connection.recv(65536):
        received += part
    connection.close()
    assert received.count(b"HTTP/1.1 200 ") == 2
    assert b"Hello" in received


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_slots_and_cache_of_a_real_engine_are_free_within_a_second(long_engine_door, stream):
    with grpc.insecure_channel(long_engine_door.grpc_address) as channel:
        stub = InferenceServiceStub(channel)

        def wait_for(condition, timeout_s) -> bool:
            deadline = time.monotonic() + timeout_s
            while not (found := condition(stub.GetLoad(GetLoadRequest()).routers[0])) and time.monotonic() < deadline:
                pass  # every turn is a round trip
            return found

        connection = start(long_engine_door, stream=stream, n=4, max_tokens=10_000, ignore_eos=True)
        assert wait_for(lambda load: load.running == 4 and load.kv_used_bytes > 0, 20)
        connection.close()
        assert wait_for(lambda load: load.running == load.waiting == load.kv_used_bytes == 0, FREE_WITHIN_S)


@pytest.fixture(scope="module")
def long_engine_door(text_model):
    """A real engine with room for an answer that takes much longer than a second."""
    with serve_engine(replace(text_model, context_length=16_384)) as live:
        yield live


def test_a_request_that_takes_too_long_is_a_504(text_model, router):
    router.script = then_holds(72)
    limits = FrontDoorLimits(request_timeout_s=0.2)
    with LiveFrontDoor(InferenceService(text_model, router, limits)) as door:
        status, _, answer = door.post("/v1/completions", {"prompt": [5]})
        assert status == 504
        assert "within 0.2 s" in answer["error"]["message"]
        assert router.wait_until_open(0)
    assert router.requests[0].timeout_s == 0.2


def test_a_client_that_stays_and_reads_no_more_has_its_time_and_not_more(text_model, router, monkeypatch):
    monkeypatch.setattr("cluster.service._LATE_S", 0.5)
    router.script = babbles
    with LiveFrontDoor(InferenceService(text_model, router, FrontDoorLimits(request_timeout_s=1.0))) as door:
        connection = start(door, stream=True)  # and never read: the socket's buffers fill
        assert router.wait_until_open(1)
        assert router.wait_until_open(0, 30.0)
        connection.close()
    assert door.service.admission.num_sequences == 0
