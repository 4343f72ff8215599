"""The two ports of a front door: OpenAI over HTTP, Herd over gRPC, one event loop."""

from __future__ import annotations

import asyncio
import socket

import grpc

from cluster.auth.guard import Guard
from cluster.config import ClusterConfig
from cluster.grpc.server import build_server
from cluster.openai.app import build_app
from cluster.openai.http_server import HttpServer
from cluster.service import InferenceService
from protos.errors import BadConfig, InternalError
from protos.tls import Identity

_BACKLOG = 2048
_POLL_S = 0.01


class Listeners:
    """Listens from `start` to `stop`.

    Several processes may listen on the same ports: the kernel spreads connections over them, and a successor listens
    before its predecessor has gone.

    Args:
        service: answers the requests.
        settings: addresses and limits.

    Raises:
        BadConfig: the file of API keys or a certificate is unusable.
    """

    def __init__(self, service: InferenceService, settings: ClusterConfig) -> None:
        self._settings = settings
        self._service = service
        self._guard = Guard(settings.auth.file)
        files = settings.tls.files
        self._identity = None if files is None else Identity(files)
        self._http = HttpServer(
            build_app(service, self._guard),
            service.metrics,
            max_connections=settings.limits.max_connections,
            context=None if self._identity is None else self._identity.server_context(),
        )
        self._serving: asyncio.Task[None] | None = None
        self._grpc: grpc.aio.Server | None = None

    async def start(self) -> None:
        """Listen on both ports.

        Raises:
            BadConfig: somebody else has one of them.
        """
        listening = _listen(self._settings.http.host, self._settings.http.port)
        self._serving = asyncio.create_task(self._http.serve(listening))
        self._grpc = build_server(self._service, self._settings.grpc.max_message_bytes, self._guard)
        _bind(self._grpc, self._settings.grpc.port, self._identity)
        await self._grpc.start()
        while not self._http.started:
            self.check()
            await asyncio.sleep(_POLL_S)

    def check(self) -> None:
        """Raise if the HTTP server has ended.

        Raises:
            InternalError: it has.
        """
        if self._serving is None or self._serving.done():
            raise InternalError("expected the HTTP server to run, found it ended; the front door's log says why")

    async def stop(self, grace_s: float) -> None:
        """Take no new requests, give those that run a time to finish, and close the ports."""
        self._http.stop()
        closing: list[asyncio.Future[None]] = []
        if self._grpc is not None:
            closing.append(asyncio.ensure_future(self._grpc.stop(grace_s)))
        if self._serving is not None:
            closing.append(self._serving)
        if closing:
            _, late = await asyncio.wait(closing, timeout=grace_s)
            for each in late:
                each.cancel()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    # A predecessor's connections, closed a moment ago, must not keep this one from listening.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise BadConfig(
            f"http.port: expected a free port, found {host}:{port} unusable: {error}; choose another"
        ) from error
    listening.listen(_BACKLOG)
    listening.setblocking(False)
    return listening


def _bind(server: grpc.aio.Server, port: int, identity: Identity | None) -> None:
    address = f"[::]:{port}"
    try:
        if identity is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, identity.server_credentials())
    except RuntimeError as error:
        raise BadConfig(f"grpc.port: expected a free port, found {port} unusable: {error}; choose another") from error
