"""A server listens where it is told, or says why not."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from protos.errors import BadConfig, PortTaken
from protos.listening import address_of, listen


@pytest.fixture
def server() -> Iterator[grpc.Server]:
    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        yield server
        server.stop(0).wait()


def test_a_free_port_is_chosen_and_listened_on(server):
    port = listen(server, "127.0.0.1", 0)
    server.start()
    socket.create_connection(("127.0.0.1", port), timeout=10).close()


def test_a_port_that_is_taken_is_refused_with_the_reason(server):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=f"127.0.0.1:{port}: expected .*: Address already in use: choose another"):
            listen(server, "127.0.0.1", port)


def test_what_is_no_port_is_refused(server):
    with pytest.raises(BadConfig, match="expected 0 to 65535, found 65536"):
        listen(server, "127.0.0.1", 65_536)


@pytest.mark.parametrize(("host", "expected"), [("10.0.0.1", "10.0.0.1:80"), ("::1", "[::1]:80")])
def test_an_address_is_written_as_grpc_reads_it(host, expected):
    assert address_of(host, 80) == expected
