"""Refuses bodies that are long or slow while they arrive, holding none of the excess."""

from __future__ import annotations

import asyncio
from typing import NoReturn

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.limits import FrontDoorLimits
from protos.errors import Overloaded, PayloadTooLarge, RequestTooSlow

DRAIN_BYTES = 256 * 1024 * 1024
"""Most bytes of a refused body that are read and thrown away, so that its sender gets to read the refusal. Of a body
that says that it is longer, none are: its sender would not get to the end."""
DRAIN_S = 10.0
"""Longest time spent on that, in seconds."""
MAX_DRAINS = 4
"""How many bodies are thrown away at once; senders of more are cut off."""
_DRAIN_REST_S = 0.002
"""Seconds between two pieces, of about 100 KB: what is thrown away must not take the time of what is answered."""
MAX_LONGEST_BODIES = 16
"""How many bodies of the longest length there is room for at once, until they are parsed."""
_RETRY_AFTER_MS = 1000


class BodyLimit:
    """ASGI middleware: reading a body longer or slower than the limits raises an error in the application.

    A client that is cut off while it sends often never reads the answer. So where an answer comes before the body was
    read, its last byte is held back until the rest of the body has been thrown away, unless that is too much.

    Args:
        app: the application; it turns the errors into responses.
        limits: of this front door.
    """

    def __init__(self, app: ASGIApp, limits: FrontDoorLimits) -> None:
        self._app = app
        self._limits = limits
        self._room = _Room(limits.max_body_bytes * MAX_LONGEST_BODIES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _LimitedBody(scope, receive, self._limits, self._room)

        async def send_after_draining(message: Message) -> None:
            body.release()  # whoever answers has parsed it, or will not
            if not body.has_ended:
                if message["type"] == "http.response.start" and body.is_hopeless:
                    message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
                elif message["type"] == "http.response.body" and not message.get("more_body", False):
                    await send({**message, "more_body": True})
                    await body.drain()
                    message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        try:
            await self._app(scope, body.receive, send_after_draining)
        finally:
            body.release()


class _Room:
    """What there is room for at once: bytes of bodies that arrive, and bodies that are thrown away."""

    def __init__(self, num_bytes: int) -> None:
        self.num_bytes = num_bytes
        self.num_used = 0
        self.num_drains = 0


class _LimitedBody:
    def __init__(self, scope: Scope, receive: Receive, limits: FrontDoorLimits, room: _Room) -> None:
        headers = dict(scope["headers"])
        declared = headers.get(b"content-length", b"")
        self._declared = int(declared) if declared.isdigit() else 0
        self._client_waits = headers.get(b"expect", b"").lower() == b"100-continue"
        self._receive = receive
        self._limits = limits
        self._room = room
        self._num_held = 0
        self._num_bytes = 0
        self._more = self._declared > 0 or b"transfer-encoding" in headers
        self._deadline = asyncio.get_running_loop().time() + limits.body_timeout_s

    async def receive(self) -> Message:
        if not self._more:
            # The application asks whether its client is still there: the body is its own now.
            self.release()
            return await self._receive()
        if self._declared > self._limits.max_body_bytes:
            self._refuse(str(self._declared))
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            raise RequestTooSlow(
                f"body: expected all of it within {self._limits.body_timeout_s:g} s, found {self._num_bytes} bytes; "
                "send it faster"
            ) from error
        if message["type"] == "http.request":
            self._take(message)
        return message

    def release(self) -> None:
        """Give room back."""
        self._room.num_used -= self._num_held
        self._num_held = 0

    def _take(self, message: Message) -> None:
        num_new = len(message.get("body", b""))
        self._num_bytes += num_new
        self._more = message.get("more_body", False)
        if self._num_bytes > self._limits.max_body_bytes:
            self._refuse(f"{self._num_bytes} or more")
        if self._room.num_used + num_new > self._room.num_bytes:
            raise Overloaded(
                f"expected at most {self._room.num_bytes} bytes of bodies to arrive at once, found more; retry in "
                f"{_RETRY_AFTER_MS} ms",
                retry_after_ms=_RETRY_AFTER_MS,
            )
        self._room.num_used += num_new
        self._num_held += num_new

    def _refuse(self, found: str) -> NoReturn:
        raise PayloadTooLarge(
            f"body: expected at most {self._limits.max_body_bytes} bytes, found {found}; "
            "send less, or raise max_body_bytes on the server"
        )

    @property
    def has_ended(self) -> bool:
        """Tell whether nothing more of the body is to be expected."""
        return not self._more

    @property
    def is_hopeless(self) -> bool:
        """Tell whether the rest is more than would be thrown away."""
        return self._declared - self._num_bytes > DRAIN_BYTES

    async def drain(self) -> None:
        if self._client_waits and not self._num_bytes:
            return  # it will not send: it was never told to go on
        if self.is_hopeless or self._room.num_drains >= MAX_DRAINS:
            return
        self._room.num_drains += 1
        try:
            async with asyncio.timeout(DRAIN_S):
                await self._throw_away()
        except TimeoutError:
            pass  # whoever is so slow is cut off
        finally:
            self._room.num_drains -= 1

    async def _throw_away(self) -> None:
        left = DRAIN_BYTES
        while left > 0:
            message = await self._receive()
            left -= len(message.get("body", b""))
            self._more = message["type"] == "http.request" and message.get("more_body", False)
            if not self._more:
                return
            await asyncio.sleep(_DRAIN_REST_S)
