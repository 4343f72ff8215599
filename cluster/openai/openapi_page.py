"""/openapi.json: what every operation takes and answers, errors too. Tests and benchmarks hold the server to it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from cluster.openai.answer_objects import Error

Responses = dict[int | str, dict[str, Any]]

_JSON = "application/json"
_SCHEMAS: dict[str, dict[str, Any]] = {
    _JSON: {"schema": {"type": "object"}},
    "text/plain": {"schema": {"type": "string"}},
}
"""What a media type's content is where nothing more is said; chunks of a stream have no schema in OpenAPI 3.1."""
_ERRORS = {
    400: "Something is wrong with the request; the message says what.",
    401: "The API key is missing, or nobody's.",
    403: "It takes an operator's API key.",
    404: "There is no such model.",
    413: "The body is too long.",
    408: "The body did not come in time.",
    429: "The server is full, or a quota is used up: come again after Retry-After.",
    503: "A part of the cluster is missing, or this server is about to stop: come again.",
    504: "The request took too long.",
}
GENERATION_ERRORS = (400, 404, 408, 413, 429, 503, 504)
"""How requests for tokens may fail."""


def answers(kind: type[BaseModel] | None, *, errors: Iterable[int] = (), content: str = "") -> Responses:
    """Return what a route answers, as FastAPI wants to be told.

    Args:
        kind: of the JSON object; None: no JSON, or any.
        errors: statuses of failures.
        content: media type that there is besides, or instead where there is no kind.
    """
    good: dict[str, Any] = {"description": "Success."}
    if kind is not None:
        good["model"] = kind
    if content:
        good["content"] = {content: _SCHEMAS.get(content, {})}
    return {200: good, **{code: {"description": _ERRORS[code], "model": Error} for code in errors}}


def install_page(app: FastAPI, *, needs_key: bool, open_paths: Iterable[str]) -> None:
    """Have an application describe itself truly: FastAPI knows neither of keys nor that it never answers 422.

    Args:
        app: the application, all routes added.
        needs_key: whether clients need an API key.
        open_paths: those that take none even so.
    """

    def page() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _page(app, needs_key, frozenset(open_paths))
        return app.openapi_schema

    app.openapi = page  # type: ignore[method-assign]  # as FastAPI's documentation says


def _page(app: FastAPI, needs_key: bool, open_paths: frozenset[str]) -> dict[str, Any]:
    page = get_openapi(title=app.title, version=app.version, routes=app.routes)
    schemas = page["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    if needs_key:
        page["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for path, operations in page["paths"].items():
        for operation in operations.values():
            operation["responses"].pop("422", None)
            if needs_key and path not in open_paths:
                operation["security"] = [{"key": []}]
                for code in (401, 403):
                    operation["responses"][str(code)] = {"description": _ERRORS[code], "content": refused}
    return page
