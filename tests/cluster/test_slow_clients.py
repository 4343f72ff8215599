"""Clients that are slow, many or never come to an end, and what is left for others."""

from __future__ import annotations

import json
import socket
import threading
from contextlib import ExitStack, contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cluster.grpc import health
from cluster.limits import FrontDoorLimits
from cluster.openai import body_limit, http_server
from cluster.openai.completions import CompletionsEndpoint
from cluster.openai.exchange import THREAD_BYTES
from cluster.service import InferenceService
from protos import errors
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub
from tests.certificates import Authority
from tests.cluster.live_front_door import LiveFrontDoor, refusal
from tests.cluster.test_bounded_connection import answer_to, connect, faults
from tests.cluster.test_front_door_tls import Door
from tests.cluster.test_grpc_api import generate
from tests.experts.replica_client import wait_until

WAIT_S = 30
BODY = {"prompt": "Hello", "max_tokens": 2}
GENERATE = "/herd.inference.v1.InferenceService/Generate"


@pytest.fixture
def limited(router, text_model):
    """Return a front door with limits of its own, open until the test ends."""
    with ExitStack() as stack:

        def open_door(**limits) -> LiveFrontDoor:
            service = InferenceService(text_model, router, FrontDoorLimits(health_timeout_s=20, **limits))
            return stack.enter_context(LiveFrontDoor(service))

        yield open_door


def post_head(num_bytes: int) -> bytes:
    lines = ["POST /v1/completions HTTP/1.1", "Host: a", "Content-Type: application/json"]
    return "\r\n".join([*lines, f"Content-Length: {num_bytes}", "", ""]).encode()


@contextmanager
def unfinished_body(door, num_sent: int):
    """Send so much of a body and no more."""
    with connect(door) as connection:
        connection.sendall(post_head(num_sent + 1) + b"x" * num_sent)
        yield connection


def test_a_body_that_does_not_come_in_time_is_a_408(limited):
    door = limited(body_timeout_s=0.2)
    with unfinished_body(door, 5) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 408")
    assert door.post("/v1/completions", BODY)[0] == 200


def test_a_body_that_says_it_is_500_mb_is_refused_before_it_is_sent(limited):
    answer = answer_to(limited(), post_head(500_000_000))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in head
    assert json.loads(body)["error"]["code"] == "payload_too_large"


def test_a_connection_ends_with_the_answer_when_its_body_does_not(limited, monkeypatch):
    monkeypatch.setattr("cluster.openai.body_limit.DRAIN_S", 0.1)
    lines = ["GET /v1/models HTTP/1.1", "Host: a", "Content-Length: 10", "", ""]
    answer = answer_to(limited(), "\r\n".join(lines).encode() + b"x")
    assert answer.startswith(b"HTTP/1.1 200")


def test_bodies_that_arrive_have_room_for_so_many_bytes_together(limited):
    door = limited(max_body_bytes=1024)
    with ExitStack() as stack:
        for _ in range(16):
            stack.enter_context(unfinished_body(door, 1023))
        room = 16 * 1024 - 16 * 1023
        wait_until(lambda: door.post("/v1/completions", b"x" * (room + 1))[0] == 429)
        assert door.post("/v1/completions", b"x" * room)[0] == 400
    wait_until(lambda: door.post("/v1/completions", json.dumps(BODY).encode() + b" " * 900)[0] == 200)


def test_bodies_have_their_room_until_they_are_parsed(limited, monkeypatch):
    parse, parsing, may_parse = CompletionsEndpoint.parse, threading.Semaphore(0), threading.Event()

    def parse_later(endpoint, data, *rest):
        parsing.release()
        assert len(data) <= THREAD_BYTES or may_parse.wait(WAIT_S)
        return parse(endpoint, data, *rest)

    monkeypatch.setattr(body_limit, "MAX_LONGEST_BODIES", 2)
    monkeypatch.setattr(CompletionsEndpoint, "parse", parse_later)
    door = limited(max_body_bytes=THREAD_BYTES + 1)
    with ExitStack() as stack:
        stack.callback(may_parse.set)
        for _ in range(2):
            body = b" " * (THREAD_BYTES + 1)
            stack.enter_context(connect(door)).sendall(post_head(len(body)) + body)
            assert parsing.acquire(timeout=WAIT_S)
        assert door.post("/v1/completions", BODY)[0] == 429
    wait_until(lambda: door.post("/v1/completions", BODY)[0] == 200)


def test_more_connections_than_may_be_are_closed_at_once(limited):
    door = limited(max_connections=3)
    with ExitStack() as stack:
        for _ in range(3):
            connection = stack.enter_context(connect(door))
            connection.sendall(b"GET")
        assert answer_to(door) == b""
        assert faults(door, "full") >= 1
    wait_until(lambda: answers(door))


def answers(door) -> bool:
    try:
        return door.get("/health")[0] == 200
    except OSError:
        return False


def test_a_handshake_that_does_not_end_is_cut_off_and_others_are_answered_meanwhile(
    router, text_model, tmp_path, monkeypatch
):
    monkeypatch.setattr(http_server, "HANDSHAKE_S", 1.0)
    authority = Authority(tmp_path)
    service = InferenceService(text_model, router)
    with Door(service, authority.sign("door")).open() as door:
        connection = socket.create_connection(("127.0.0.1", door.http_port), timeout=WAIT_S)
        with connection:
            connection.sendall(b"\x16\x03\x01")  # the beginning of a hello
            assert door.http(authority.ca) == 200
            assert connection.recv(100) == b""
            # Counted when the loop hears of it, which is after the client.
            refused = service.metrics.registry.get_sample_value
            wait_until(lambda: refused("herd_refused_connections_total", {"reason": "handshake"}) == 1)


def test_a_client_that_connects_and_leaves_is_no_failed_handshake(router, text_model, tmp_path):
    authority = Authority(tmp_path)
    service = InferenceService(text_model, router)
    refused = service.metrics.registry.get_sample_value
    with Door(service, authority.sign("door")).open() as door:
        socket.create_connection(("127.0.0.1", door.http_port), timeout=WAIT_S).close()
        with socket.create_connection(("127.0.0.1", door.http_port), timeout=WAIT_S) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")  # not encrypted
            wait_until(lambda: refused("herd_refused_connections_total", {"reason": "handshake"}))
    assert refused("herd_refused_connections_total", {"reason": "handshake"}) == 1


def test_a_client_that_takes_nothing_of_its_answers_loses_its_connection(limited, monkeypatch):
    monkeypatch.setattr(http_server, "UNREAD_S", 0.1)
    door = limited(max_connections=1)
    for each in (door._socket, connection := socket.socket()):
        for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            each.setsockopt(socket.SOL_SOCKET, buffer, 4096)  # less than the answer takes
    with connection:
        host, port = door.http_address.split(":")
        connection.connect((host, int(port)))
        connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert connection.recv(1) == b"H"
        wait_until(lambda: answers(door))


def test_a_grpc_call_whose_message_does_not_come_in_time_ends(limited):
    door = limited(body_timeout_s=0.2)
    with grpc.insecure_channel(door.grpc_address) as channel:
        ended = threading.Event()

        def nothing():
            ended.wait(WAIT_S)
            yield from ()

        found = refusal(lambda: list(channel.stream_stream(GENERATE)(nothing(), timeout=WAIT_S)))
        ended.set()
        assert isinstance(found, errors.RequestTooSlow)
        assert generate(InferenceServiceStub(channel), prompt="Hello")[-1].HasField("finished")


def test_a_grpc_call_without_a_message_is_the_clients_fault(door):
    with grpc.insecure_channel(door.grpc_address) as channel:
        found = refusal(lambda: list(channel.stream_stream(GENERATE)(iter(()), timeout=WAIT_S)))
    assert isinstance(found, errors.InvalidRequest)


def test_metadata_without_end_is_refused_and_others_are_answered(door):
    with grpc.insecure_channel(door.grpc_address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S, metadata=[("a", "b" * 100_000)])
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert stub.Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S).status == 1


def test_more_grpc_connections_than_may_be_are_closed_at_once(limited):
    door = limited(max_connections=2)
    with ExitStack() as stack:
        for _ in range(2):
            assert check(stack, door) is None
        assert check(stack, door) == grpc.StatusCode.UNAVAILABLE
    with ExitStack() as stack:
        wait_until(lambda: check(stack, door) is None)


def check(stack: ExitStack, door) -> grpc.StatusCode | None:
    """Ask over a connection of its own, which the stack closes; return how that failed."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = stack.enter_context(grpc.insecure_channel(door.grpc_address, options=options))
    try:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=WAIT_S)
    except grpc.RpcError as error:
        return error.code()
    return None


def test_so_many_may_watch_the_health_at_once(door, monkeypatch):
    monkeypatch.setattr(health, "MAX_WATCHES", 2)
    request = health_pb2.HealthCheckRequest()
    with grpc.insecure_channel(door.grpc_address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watching = [stub.Watch(request, timeout=WAIT_S) for _ in range(2)]
        for each in watching:
            assert next(each).status == health_pb2.HealthCheckResponse.SERVING
        assert isinstance(refusal(lambda: next(stub.Watch(request, timeout=WAIT_S))), errors.Overloaded)
        for each in watching:
            each.cancel()
        wait_until(lambda: is_watched(stub, request))


def is_watched(stub, request) -> bool:
    call = stub.Watch(request, timeout=WAIT_S)
    try:
        return next(call).status == health_pb2.HealthCheckResponse.SERVING
    except grpc.RpcError:
        return False
    finally:
        call.cancel()
