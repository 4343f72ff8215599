"""Names HTTP requests and says the name in every answer."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.request_id import HEADER, RequestId, request_id

_KEY = "herd.request_id"


class RequestIds:
    """ASGI middleware: takes a request's name over from its client, or gives it one.

    Args:
        app: the application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        named = scope[_KEY] = request_id(Headers(scope=scope).get(HEADER))
        header = (HEADER.encode(), named.value.encode())

        async def send_with_name(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), header]}
            await send(message)

        await self._app(scope, receive, send_with_name)


def request_id_of(scope: Scope) -> RequestId:
    """Return the name of a request that came through RequestIds."""
    named: RequestId = scope[_KEY]
    return named
