"""The HTTP application: which path does what."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

from cluster.auth.guard import Guard
from cluster.openai.answer import Endpoint
from cluster.openai.authentication import Authentication
from cluster.openai.bodies import ChatBody, CommonBody, CompletionsBody
from cluster.openai.body_limit import BodyLimit
from cluster.openai.chat import ChatEndpoint
from cluster.openai.completions import CompletionsEndpoint
from cluster.openai.connection_end import ConnectionEnd
from cluster.openai.error_object import add_error_handlers
from cluster.openai.exchange import Exchange
from cluster.openai.json_text import JsonResponse
from cluster.openai.operations import add_operations
from cluster.openai.request_id import RequestIds
from cluster.served_model import ServedModel
from cluster.service import InferenceService
from cluster.validation import check_model_name
from cluster.version import herd_version


def build_app(service: InferenceService, guard: Guard | None = None) -> FastAPI:
    """Build the front door's HTTP application.

    Args:
        service: answers the requests; its limits are the application's.
        guard: knows who may; None: everybody may.
    """
    # The interactive pages of FastAPI load scripts from elsewhere; /openapi.json is enough.
    app = FastAPI(title="Herd", version=herd_version(), docs_url=None, redoc_url=None)
    if guard is not None:
        app.add_middleware(Authentication, guard=guard)
    # Around the guard: whoever is refused while they send gets to read why.
    app.add_middleware(BodyLimit, max_bytes=service.limits.max_body_bytes)
    app.add_middleware(ConnectionEnd, service=service)
    app.add_middleware(RequestIds)  # around all others: their answers say the name, too
    add_error_handlers(app)
    _add_generation(app, "/v1/completions", service, CompletionsEndpoint(), CompletionsBody)
    _add_generation(app, "/v1/chat/completions", service, ChatEndpoint(), ChatBody)
    _add_models(app, service.model)
    add_operations(app, service)
    return app


def _add_generation(
    app: FastAPI, path: str, service: InferenceService, endpoint: Endpoint, body: type[CommonBody]
) -> None:
    schema = {"requestBody": {"content": {"application/json": {"schema": body.model_json_schema()}}, "required": True}}

    async def generate() -> Response:
        return Exchange(service, endpoint)

    app.add_api_route(path, generate, methods=["POST"], name=endpoint.name, response_model=None, openapi_extra=schema)


def _add_models(app: FastAPI, model: ServedModel) -> None:
    card: dict[str, Any] = {
        "id": model.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "herd",
        "max_model_len": model.context_length,
    }

    @app.get("/v1/models", response_model=None)
    async def list_models() -> Response:
        """List the served model."""
        return JsonResponse({"object": "list", "data": [card]})

    @app.get("/v1/models/{name:path}", response_model=None)
    async def get_model(name: str) -> Response:
        """Describe the served model."""
        check_model_name(name, model)
        return JsonResponse(card)
