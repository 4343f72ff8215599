"""uvicorn behind an accept loop with bounds: its own takes any number of connections, and handshakes of a minute."""

from __future__ import annotations

import asyncio
import errno
import functools
import logging
import socket
import ssl
from contextlib import suppress
from typing import Any

import uvicorn

from cluster.front_door_metrics import FrontDoorMetrics
from cluster.openai.bounded_connection import BoundedConnection
from cluster.pace import CONNECTIONS_PER_S, Pace

HANDSHAKE_S = 10.0
"""Seconds from a connection to the end of its TLS handshake."""
UNREAD_S = 600.0
"""Seconds in which a client may take nothing of what is sent to it: then the kernel ends the connection, which would
otherwise be counted as long as the client's machine answers."""
_IDLE_S = 75
"""Seconds that a connection is kept for a next request: longer than load balancers keep theirs (60 s), as what they
send while it is being closed would fail."""
_OUT_OF_FILES_S = 1.0
_LOG = logging.getLogger(__name__)


class HttpServer:
    """Serves an application from `serve` to `stop`. Belongs to one event loop.

    Args:
        app: ASGI.
        metrics: count connections that are refused.
        max_connections: most that are open at once, those in a handshake included; more are closed at once, so that
            whoever asks can ask another front door.
        context: TLS; None: no encryption.
        grace_s: seconds that requests may take once it is stopped; None: as long as they do.
    """

    def __init__(
        self,
        app: Any,
        metrics: FrontDoorMetrics,
        *,
        max_connections: int,
        context: ssl.SSLContext | None = None,
        grace_s: int | None = None,
    ) -> None:
        # Nothing here speaks WebSocket.
        config = uvicorn.Config(
            app,
            ws="none",
            access_log=False,
            log_config=None,
            log_level="error",  # it warns of every malformed request: whoever sends them would fill the log
            lifespan="off",
            timeout_keep_alive=_IDLE_S,
            timeout_graceful_shutdown=grace_s,
        )
        self._metrics = metrics
        self._max_connections = max_connections
        self._context = context
        self._config = config
        self._server = uvicorn.Server(config)
        self._listening: socket.socket | None = None
        self._opening: set[asyncio.Task[None]] = set()
        self._pace = Pace(CONNECTIONS_PER_S)

    @property
    def started(self) -> bool:
        """Tell whether it takes requests."""
        return self._server.started

    async def serve(self, listening: socket.socket) -> None:
        """Serve until it is stopped, and close the socket.

        Args:
            listening: bound, listening, not blocking.
        """
        self._listening = listening
        # Not sock_accept: a connection that comes while the task that waits there is cancelled would stay open.
        asyncio.get_running_loop().add_reader(listening, self._accept)
        try:
            await self._server.serve(sockets=[])
        finally:
            self.stop()
            await asyncio.gather(*self._opening, return_exceptions=True)

    def stop(self) -> None:
        """Take no more connections; requests that run go on."""
        self._server.should_exit = True
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None
        for each in self._opening:
            each.cancel()

    def _accept(self) -> None:
        """Take one connection: a flood of them must not hold up everybody's streams."""
        if self._listening is None:
            return
        try:
            connection, _ = self._listening.accept()
        except OSError as error:
            # Else there is none: the client has gone again.
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                _LOG.error("no connection can be taken: %s; waiting", error)
                self._rest(self._listening, _OUT_OF_FILES_S)
            return
        if delay_s := self._pace.delay_s():
            self._rest(self._listening, delay_s)
        if len(self._server.server_state.connections) + len(self._opening) >= self._max_connections:
            self._metrics.count_refused_connection("full")
            connection.close()
            return
        opening = asyncio.get_running_loop().create_task(self._open(connection))
        self._opening.add(opening)
        opening.add_done_callback(functools.partial(self._opened, connection))

    def _rest(self, listening: socket.socket, seconds: float) -> None:
        """Look for no connections for a while: the kernel keeps them."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(listening)
        loop.call_later(seconds, self._go_on)

    def _go_on(self) -> None:
        if self._listening is not None:
            asyncio.get_running_loop().add_reader(self._listening, self._accept)

    def _opened(self, connection: socket.socket, opening: asyncio.Task[None]) -> None:
        self._opening.discard(opening)
        if opening.cancelled():
            connection.close()  # a task that is cancelled before it begins runs none of its lines

    async def _open(self, connection: socket.socket) -> None:
        protocol = functools.partial(
            BoundedConnection,
            config=self._config,
            server_state=self._server.server_state,
            app_state={},
            on_fault=self._metrics.count_refused_connection,
        )
        limit = {} if self._context is None else {"ssl_handshake_timeout": HANDSHAKE_S}
        connection.setblocking(False)
        try:
            with suppress(OSError):
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(UNREAD_S * 1000))
            await asyncio.get_running_loop().connect_accepted_socket(protocol, connection, ssl=self._context, **limit)
        except ConnectionResetError:
            connection.close()  # by the client, as probes do that only connect
        except OSError:  # ssl.SSLError, and ConnectionAbortedError when the time is over
            self._metrics.count_refused_connection("handshake")
            connection.close()
        except BaseException:
            connection.close()
            raise
