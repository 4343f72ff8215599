"""HTTP requests that are refused in a flood are answered later."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.pace import REFUSALS_PER_S, Pace


class PacedRefusals:
    """ASGI middleware: an answer of status 400 to 499 begins when a pace says so.

    A client that asks again as soon as it is refused is held to that pace. One with a thousand connections is held to a
    thousand requests a second; it takes those from `http.max_connections`.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._pace = Pace(REFUSALS_PER_S)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_later(message: Message) -> None:
            if message["type"] == "http.response.start" and 400 <= message["status"] < 500:
                await self._pace.wait()
            await send(message)

        await self._app(scope, receive, send_later)
