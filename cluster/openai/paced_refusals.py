"""HTTP requests that are refused in a flood are answered later."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.refusal_pace import RefusalPace


class PacedRefusals:
    """ASGI middleware: an answer of status 400 to 499 begins when a pace says so.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._pace = RefusalPace()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_later(message: Message) -> None:
            if message["type"] == "http.response.start" and 400 <= message["status"] < 500:
                await self._pace.wait()
            await send(message)

        await self._app(scope, receive, send_later)
