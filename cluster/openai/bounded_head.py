"""HTTP connections whose requests begin in time and within bounds: uvicorn waits for ever, and keeps any header."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Most bytes of a request line and headers; a piece of the kernel's size may come on top."""
HEAD_S = 20.0
"""Seconds from a connection, or a request's first byte, to the end of its headers."""


class BoundedHead(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._awaits_head = True
        self._head_bytes = 0
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request, so long."""
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes, unless the headers before them were too long already."""
        if self._awaits_head:
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response(f"expected at most {MAX_HEAD_BYTES} bytes of headers, found more; send fewer")
                return
            if self._deadline is None:
                self._arm()
            self._head_bytes += len(data)
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """Serve the request."""
        self._awaits_head = False
        self._disarm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Look for the next one."""
        self._awaits_head = True
        self._head_bytes = 0
        super().on_message_complete()

    def _arm(self) -> None:
        self._deadline = asyncio.get_running_loop().call_later(HEAD_S, self._give_up)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            self.transport.close()
