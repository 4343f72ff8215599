"""HTTP connections whose requests begin in time and within bounds: uvicorn waits for ever, and keeps any header."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from cluster.front_door_metrics import ConnectionFault
from cluster.openai.error_object import error_object
from cluster.openai.json_text import to_json
from protos.errors import InvalidRequest

MAX_HEAD_BYTES = 64 * 1024
"""Most bytes of a request line and headers; a piece of the kernel's size may come on top."""
MAX_HEADERS = 256
"""Most headers of a request."""
HEAD_S = 20.0
"""Seconds from a connection, or a request's first byte, to the end of its headers."""
MAX_FRAMING_BYTES = 64 * 1024
"""Most bytes around a body's bytes, beyond `_FRAMING_PER_BYTE`: sizes of chunks, their extensions, trailers."""
_FRAMING_PER_BYTE = 16
"""Such bytes that each byte of a body excuses: chunks may be as short as one byte."""
MAX_PIPELINED = 16
"""Most requests of one connection that wait for the answer before theirs."""


class BoundedConnection(HttpToolsProtocol):
    """One connection."""

    def __init__(self, *args: Any, on_fault: Callable[[ConnectionFault], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_fault = on_fault
        self._fault: ConnectionFault = "malformed"
        self._awaits_head = True
        self._head_bytes = 0
        self._framing_bytes = 0
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
        """Take bytes, unless the headers before them, or what is around a body, were too long already."""
        if self._awaits_head:
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse("head", f"at most {MAX_HEAD_BYTES} bytes of headers")
                return
            if self._deadline is None:
                self._arm()
            self._head_bytes += len(data)
        else:
            self._framing_bytes += len(data)  # what of it is the body's, on_body takes off
        super().data_received(data)
        if self._framing_bytes > MAX_FRAMING_BYTES and not self.transport.is_closing():
            self._refuse("framing", f"at most {MAX_FRAMING_BYTES} bytes around a body in chunks")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer, which comes after a body, says nothing to anybody here."""
        if not self._awaits_head:
            return
        if len(self.headers) >= MAX_HEADERS:
            self._fault = "head"
            raise ValueError(f"expected at most {MAX_HEADERS} headers")  # ends the parser: answered with 400
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Serve the request."""
        self._awaits_head = False
        self._framing_bytes = 0
        self._disarm()
        super().on_headers_complete()
        if len(self.pipeline) > MAX_PIPELINED:
            self._fault = "pipeline"
            raise ValueError(f"expected at most {MAX_PIPELINED} requests to wait")

    def on_body(self, body: bytes) -> None:
        """Take a part of the body."""
        self._framing_bytes = max(self._framing_bytes - (1 + _FRAMING_PER_BYTE) * len(body), 0)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Look for the next one."""
        self._awaits_head = True
        self._head_bytes = self._framing_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Look for the next request, unless the body of this one is still coming: nobody would wait for its end."""
        # A request that waits for this answer's end is the one whose body is coming.
        is_cut_short = not self._awaits_head and not self.pipeline
        super().on_response_complete()
        if is_cut_short:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request that is served here, in the form of all other errors, and close."""
        self._on_fault(self._fault)
        error = InvalidRequest(f"expected a request of HTTP/1.1, found another: {msg} Send another one")
        body = to_json(error_object(error))
        head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def _refuse(self, fault: ConnectionFault, expected: str) -> None:
        self._fault = fault
        self.send_400_response(f"expected {expected}.")

    def _arm(self) -> None:
        self._deadline = asyncio.get_running_loop().call_later(HEAD_S, self._give_up)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._deadline = None
        if not self.transport.is_closing():
            # One that has sent nothing may be a browser's, opened ahead.
            if self._head_bytes:
                self._on_fault("head")
            self.shutdown()  # once the answer that runs, if one does, has come to its end
