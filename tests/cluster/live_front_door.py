"""A front door as users meet it: HTTP and gRPC on free ports, served from a thread of its own."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from contextlib import closing
from http.client import HTTPMessage
from typing import Any

import grpc
import pytest

from cluster.auth.guard import Guard
from cluster.grpc.server import build_server
from cluster.openai.app import build_app
from cluster.openai.http_server import HttpServer
from cluster.service import InferenceService
from protos import errors

START_S = 30


class LiveFrontDoor:
    """Context manager: serves while it is entered."""

    def __init__(self, service: InferenceService, guard: Guard | None = None) -> None:
        self.service = service
        self._guard = guard
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.http_address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.url = f"http://{self.http_address}"
        self.grpc_address = ""
        self._socket.setblocking(False)
        self._http = HttpServer(
            build_app(service, guard), service.metrics, max_connections=service.limits.max_connections, grace_s=2
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="front-door")

    def __enter__(self) -> LiveFrontDoor:
        self._thread.start()
        assert self._ready.wait(START_S)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._http.stop)
        self._thread.join()

    def post(self, path: str, body: object, **headers: str) -> tuple[int, HTTPMessage, Any]:
        """Send raw bytes or JSON, and return (status, headers, parsed body); a stream is not parsed."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"Content-Type": "application/json", **{name.replace("_", "-"): each for name, each in headers.items()}}
        status, answered, text = self.call("POST", path, data, sent)
        is_stream = (answered["content-type"] or "").startswith("text/event-stream")
        return status, answered, text if is_stream else json.loads(text)

    def get(self, path: str, **headers: str) -> tuple[int, HTTPMessage, str]:
        """Return (status, headers, text)."""
        return self.call("GET", path, None, headers)

    def call(self, *request: object) -> tuple[int, HTTPMessage, str]:
        """Send a method, a path, a body and headers, and return (status, headers, text)."""
        with closing(http.client.HTTPConnection(self.http_address, timeout=30)) as connection:
            connection.request(*request)
            response = connection.getresponse()
            return response.status, response.headers, response.read().decode()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = build_server(self.service, 4 * 1024 * 1024, self._guard)
        self.grpc_address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        self._ready.set()
        await self._http.serve(self._socket)
        await server.stop(grace=0)


def refusal(call) -> errors.ServingError:
    """Call by gRPC, and return the error that the call ends with."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = errors.from_rpc_error(caught.value, "herd")
    assert caught.value.code() == error.grpc_code
    return error
