"""Refuses long request bodies while they arrive, holding none of the excess."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import NoReturn

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from protos.errors import PayloadTooLarge

DRAIN_BYTES = 256 * 1024 * 1024
"""Most bytes of a refused body that are read and thrown away, so that its sender gets to read the refusal."""
DRAIN_S = 10.0
"""Longest time spent on that, in seconds."""


class BodyLimit:
    """ASGI middleware: reading a body longer than the limit raises PayloadTooLarge in the application.

    A client that is cut off while it sends often never reads the answer. So where an answer comes before the body was
    read, its last byte is held back until the rest of the body has been thrown away.

    Args:
        app: the application; it turns the error into a response.
        max_bytes: longest body.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _LimitedBody(scope, receive, self._max_bytes)

        async def send_after_draining(message: Message) -> None:
            is_last = message["type"] == "http.response.body" and not message.get("more_body", False)
            if is_last and not body.has_ended:
                await send({**message, "more_body": True})
                await body.drain()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        await self._app(scope, body.receive, send_after_draining)


class _LimitedBody:
    def __init__(self, scope: Scope, receive: Receive, max_bytes: int) -> None:
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"")
        self._declared = int(declared) if declared.isdigit() else 0
        self._client_waits = headers.get(b"expect", b"").lower() == b"100-continue"
        self._receive = receive
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._more = self._declared > 0 or b"transfer-encoding" in headers

    async def receive(self) -> Message:
        if self._declared > self._max_bytes:
            self._refuse(str(self._declared))
        message = await self._receive()
        if message["type"] == "http.request":
            self._num_bytes += len(message.get("body", b""))
            self._more = message.get("more_body", False)
            if self._num_bytes > self._max_bytes:
                self._refuse(f"{self._num_bytes} or more")
        return message

    def _refuse(self, found: str) -> NoReturn:
        raise PayloadTooLarge(
            f"body: expected at most {self._max_bytes} bytes, found {found}; "
            "send less, or raise max_body_bytes on the server"
        )

    @property
    def has_ended(self) -> bool:
        """Tell whether nothing more of the body is to be expected."""
        return not self._more

    async def drain(self) -> None:
        if self._client_waits and not self._num_bytes:
            return  # it will not send: it was never told to go on
        with suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S):
                while self._more and self._num_bytes < DRAIN_BYTES:
                    message = await self._receive()
                    if message["type"] != "http.request":
                        return
                    self._num_bytes += len(message.get("body", b""))
                    self._more = message.get("more_body", False)
