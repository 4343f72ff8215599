"""Errors as OpenAI's clients expect them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

import logging
import math

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from cluster.logs import fields
from cluster.openai.json_text import JsonResponse
from cluster.openai.request_id import request_id_of
from cluster.request_id import RequestId
from protos.errors import ContextTooLong, InternalError, NotFound, ServingError

_LOG = logging.getLogger(__name__)

_CODES: dict[type[ServingError], str] = {
    ContextTooLong: "context_length_exceeded",
    NotFound: "model_not_found",
}
"""Where OpenAI has a code of its own; the others are the reason in lower case."""


_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_object(error: ServingError) -> dict[str, object]:
    """Return the JSON body that tells a client of an error."""
    status = error.http_status
    kind = "server_error" if status >= 500 else _TYPES.get(status, "invalid_request_error")
    return {
        "error": {
            "message": error.message,
            "type": kind,
            "param": error.metadata.get("param"),
            "code": _CODES.get(type(error), error.reason.lower()),
        }
    }


def error_response(error: ServingError) -> Response:
    """Return the whole response, with Retry-After where waiting helps."""
    headers = {}
    if error.retry_after_ms:
        headers["retry-after"] = str(math.ceil(error.retry_after_ms / 1000))
        headers["retry-after-ms"] = str(error.retry_after_ms)
    return JsonResponse(error_object(error), error.http_status, headers)


def internal_error(error: Exception, where: str, request_id: RequestId) -> InternalError:
    """Log a bug of ours and return what a client may know of it."""
    _LOG.error("%s failed", where, exc_info=error, extra=fields(request_id=request_id.value))
    return InternalError("the server failed on this request; its log says why, please report it")


def add_error_handlers(app: FastAPI) -> None:
    """Make every error of an application an error object."""

    async def on_serving_error(_: Request, error: Exception) -> Response:
        assert isinstance(error, ServingError)
        return error_response(error)

    async def on_http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        found = f"{request.method} {request.url.path}"
        message = f"expected a route of this server, found {found} ({error.detail}); see /openapi.json"
        body = {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": None}}
        return JsonResponse(body, error.status_code, error.headers)

    async def on_bug(request: Request, error: Exception) -> Response:
        return error_response(internal_error(error, request.url.path, request_id_of(request.scope)))

    app.add_exception_handler(ServingError, on_serving_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_bug)
