"""Requests whose headers never end: too many of them, or too slow."""

from __future__ import annotations

import socket

import pytest

from cluster.openai import bounded_head


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
    monkeypatch.setattr(bounded_head, "HEAD_S", 0.1)
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
