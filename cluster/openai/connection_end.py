"""Ends HTTP connections with their answer once nobody should come here any more: the next request goes elsewhere."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.service import InferenceService


class ConnectionEnd:
    """ASGI middleware.

    Args:
        app: the application.
        service: knows whether this front door leaves.
    """

    def __init__(self, app: ASGIApp, service: InferenceService) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_at_the_end(message: Message) -> None:
            if message["type"] == "http.response.start" and self._service.is_leaving:
                message = {**message, "headers": [*message.get("headers", ()), (b"connection", b"close")]}
            await send(message)

        await self._app(scope, receive, send_at_the_end)
