"""Connections over HTTP that take more than their share: headers, chunks, trailers, requests without end."""

from __future__ import annotations

import json
import socket
import threading

import pytest

from cluster.openai import bounded_connection
from router.request import Ended, PromptDone, TokenChosen
from tests.experts.replica_client import wait_until


def connect(door) -> socket.socket:
    host, port = door.http_address.split(":")
    return socket.create_connection((host, int(port)), timeout=30)


@pytest.mark.parametrize("start", [b"X: ", b""])
def test_headers_without_end_are_refused_before_they_fill_the_memory(door, start):
    line = b"a" * 1000 if start else b"Name: value\r\n" * 100
    with connect(door) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\n" + start)
        with pytest.raises(ConnectionError):
            connection.sendall(line * (50_000_000 // len(line)))
    assert door.get("/health")[0] == 200


@pytest.mark.parametrize("start", [b"", b"GET /health HTTP/1.1\r\nHost:"])
def test_a_connection_that_sends_no_whole_request_is_closed_in_time(door, monkeypatch, start):
    monkeypatch.setattr(bounded_connection, "HEAD_S", 0.1)
    with connect(door) as connection:
        connection.sendall(start)
        assert connection.recv(100) == b""


def test_long_headers_and_bodies_within_bounds_are_served_one_after_the_other(door):
    with connect(door) as connection:
        for _ in range(3):
            body = b'{"prompt": "' + b"Hello " * 10 + b'", "max_tokens": 1}'
            head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 40_000
            connection.sendall(head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            answer = b""
            while b"usage" not in answer:
                answer += connection.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 200")


def faults(door, reason: str) -> float:
    registry = door.service.metrics.registry
    return registry.get_sample_value("herd_refused_connections_total", {"reason": reason}) or 0.0


def answer_to(door, *pieces: bytes) -> bytes:
    """Send, and return what comes until the connection is closed."""
    answer = b""
    with connect(door) as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
        except OSError:
            pass  # closed meanwhile; what it said may be there to read
        try:
            while more := connection.recv(65_536):
                answer += more
        except ConnectionError:
            pass
    return answer


def test_a_bomb_of_headers_is_refused_in_the_form_of_all_errors(door):
    answer = answer_to(door, b"GET /health HTTP/1.1\r\n" + b"a: b\r\n" * 300 + b"\r\n")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["code"] == "invalid_request"
    assert faults(door, "head") == 1
    assert door.get("/health")[0] == 200


CHUNKED = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("endless", [b"0\r\n" + b"X: y\r\n" * 1000, b"0\r\nX: " + b"y" * 4000, b"1;" + b"x" * 4000])
def test_trailers_and_extensions_of_chunks_without_end_are_refused(door, endless):
    answer_to(door, CHUNKED, endless, *[endless[3:]] * 10_000)
    assert faults(door, "framing") == 1
    assert door.get("/health")[0] == 200


def test_a_body_in_chunks_of_one_byte_with_trailers_is_served(door):
    body = b'{"prompt": "' + b"Hello " * 10 + b'", "max_tokens": 1}' + b" " * 9000
    chunks = b"".join(b"1\r\n%c\r\n" % each for each in body)
    with connect(door) as connection:
        connection.sendall(CHUNKED + chunks + b"0\r\nX: y\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def test_a_flood_of_requests_on_one_connection_is_cut_off(door):
    request = b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n"
    answer = answer_to(door, request * 5000)
    assert answer.count(b"HTTP/1.1 200") < 100
    assert faults(door, "pipeline") == 1


def test_some_requests_in_advance_are_answered_in_order(door):
    paths = ["/v1/models", "/health", "/v1/models/none"]
    requests = [f"GET {each} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for each in paths]
    answer = answer_to(door, b"".join(requests) + b"GET /health HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
    statuses = [int(each[:3]) for each in answer.split(b"HTTP/1.1 ")[1:]]
    assert statuses == [200, 200, 404, 200]


def test_a_body_may_come_after_the_answer_to_the_request_before(door):
    body = b'{"prompt": "Hello", "max_tokens": 1}'
    post = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
    with connect(door) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: a\r\n\r\n" + post)
        answer = b""
        while not answer.endswith(b"}]}"):
            answer += connection.recv(65_536)
        connection.sendall(body)
        assert connection.recv(65_536).startswith(b"HTTP/1.1 200")


def test_the_beginning_of_another_request_does_not_cut_an_answer_short(door, router, monkeypatch):
    monkeypatch.setattr(bounded_connection, "HEAD_S", 0.05)
    may_end = threading.Event()

    def waits(request):
        yield from ([], [PromptDone()], [TokenChosen(token_id=72)])
        while not may_end.is_set():
            yield []
        yield [Ended(reason="length")]

    router.script = waits
    body = b'{"prompt": "Hello", "stream": true}'
    with connect(door) as connection, connection.makefile("rb") as answer:
        head = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body)
        connection.sendall(head + body)
        assert answer.readline().startswith(b"HTTP/1.1 200")
        connection.sendall(b"GET")
        wait_until(lambda: faults(door, "head") == 1)
        may_end.set()
        assert b"[DONE]" in answer.read()  # and then it is closed


def test_a_connection_does_not_become_a_web_socket(door):
    lines = ["GET /v1/models HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: websocket"]
    lines += ["Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "", ""]
    with connect(door) as connection:
        connection.sendall("\r\n".join(lines).encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
