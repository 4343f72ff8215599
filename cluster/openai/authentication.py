"""Lets HTTP requests in whose key is known, and tells the application whose it is."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.auth.guard import Guard
from cluster.auth.quota import ANYBODY, Caller
from cluster.openai.error_object import error_response
from protos.errors import ServingError, Unauthenticated

_CALLER = "herd.caller"
OPEN_PATHS = frozenset({"/health"})
"""What probes ask, which have no key."""
_FOR_ALL, _PAGE = "/v1/", "/openapi.json"
"""Where any key will do; everything else is the operator's."""
_SAME_SITE = (b"same-origin", b"none")


class Authentication:
    """ASGI middleware: a request without the key it takes ends here.

    Browsers cannot be told to send a bearer token, but ask their user for a password: for the operator's pages, the key
    may come as one (Basic, any name). Only there, and not for a request that another site's page made the browser send.

    Args:
        app: the application.
        guard: knows the keys.
        on_refusal: told the path and the status of a request that ends here.
    """

    def __init__(self, app: ASGIApp, guard: Guard, on_refusal: Callable[[str, int], None]) -> None:
        self._app = app
        self._guard = guard
        self._on_refusal = on_refusal

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = scope.get("path", "")
        if scope["type"] != "http" or self._guard.is_open or path in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        for_admin = not path.startswith(_FOR_ALL) and path != _PAGE
        headers = dict(scope["headers"])
        try:
            caller = self._guard.caller(_authorization(headers, for_admin), for_admin=for_admin)
        except ServingError as error:
            self._on_refusal(path, error.http_status)
            response = error_response(error)
            if isinstance(error, Unauthenticated):
                response.headers["www-authenticate"] = 'Basic realm="herd"' if for_admin else "Bearer"
            await response(scope, receive, send)
            return
        await self._app({**scope, _CALLER: caller}, receive, send)


def caller_of(scope: Scope) -> Caller:
    """Return who sent a request that was let in."""
    caller = scope.get(_CALLER, ANYBODY)
    assert isinstance(caller, Caller)
    return caller


def _authorization(headers: dict[bytes, bytes], for_admin: bool) -> str | None:
    """Return the header, a password turned to the bearer token it stands for."""
    found = headers.get(b"authorization")
    if found is None:
        return None
    scheme, _, value = found.decode("latin-1").partition(" ")
    if scheme.lower() != "basic" or not for_admin or headers.get(b"sec-fetch-site", b"none") not in _SAME_SITE:
        return found.decode("latin-1")
    try:
        pair = base64.b64decode(value, validate=True).decode("latin-1")
    except binascii.Error:
        return None
    return f"Bearer {pair.partition(':')[2]}"
