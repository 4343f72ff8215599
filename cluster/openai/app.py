"""The HTTP application: which path does what."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi import Path as PathParameter
from pydantic import BaseModel
from starlette.responses import Response

from cluster.auth.guard import Guard
from cluster.openai.answer import Endpoint
from cluster.openai.answer_objects import ChatCompletion, Completion, ModelCard, ModelList
from cluster.openai.authentication import OPEN_PATHS, Authentication
from cluster.openai.bodies import ChatBody, CommonBody, CompletionsBody
from cluster.openai.body_limit import BodyLimit
from cluster.openai.chat import ChatEndpoint
from cluster.openai.completions import CompletionsEndpoint
from cluster.openai.connection_end import ConnectionEnd
from cluster.openai.error_object import add_error_handlers
from cluster.openai.exchange import Exchange
from cluster.openai.json_text import JsonResponse
from cluster.openai.openapi_page import GENERATION_ERRORS, answers, install_page
from cluster.openai.operations import add_operations
from cluster.openai.paced_refusals import PacedRefusals
from cluster.openai.request_id import RequestIds
from cluster.openai.request_schema import request_schema
from cluster.served_model import ServedModel
from cluster.service import InferenceService
from cluster.validation import check_model_name
from cluster.version import herd_version

_COMPLETIONS, _CHAT = "/v1/completions", "/v1/chat/completions"


def build_app(service: InferenceService, guard: Guard | None = None) -> FastAPI:
    """Build the front door's HTTP application.

    Args:
        service: answers the requests; its limits are the application's.
        guard: knows who may; None: everybody may.
    """
    # The interactive pages of FastAPI load scripts from elsewhere; /openapi.json is enough.
    # No redirects from /v1/completions/: they name http behind a proxy that ends TLS, and a key would follow there.
    app = FastAPI(title="Herd", version=herd_version(), docs_url=None, redoc_url=None, redirect_slashes=False)
    if guard is not None:
        app.add_middleware(Authentication, guard=guard, on_refusal=_refusal_counter(service))
    # Around the guard: whoever is refused while they send gets to read why.
    app.add_middleware(BodyLimit, limits=service.limits)
    app.add_middleware(PacedRefusals)
    app.add_middleware(ConnectionEnd, service=service)
    app.add_middleware(RequestIds)  # around all others: their answers say the name, too
    add_error_handlers(app)
    _add_generation(app, _COMPLETIONS, service, CompletionsEndpoint(), CompletionsBody, Completion)
    _add_generation(app, _CHAT, service, ChatEndpoint(), ChatBody, ChatCompletion)
    _add_models(app, service.model)
    add_operations(app, service)
    install_page(app, needs_key=guard is not None and not guard.is_open, open_paths=OPEN_PATHS)
    return app


def _refusal_counter(service: InferenceService) -> Callable[[str, int], None]:
    """Return what counts a refusal for want of a good key, by path and status."""
    names = {_COMPLETIONS: CompletionsEndpoint.name, _CHAT: ChatEndpoint.name}
    return lambda path, status: service.metrics.count_request(names.get(path, "other"), str(status))


def _add_generation(
    app: FastAPI,
    path: str,
    service: InferenceService,
    endpoint: Endpoint,
    body: type[CommonBody],
    answer: type[BaseModel],
) -> None:
    content = {"application/json": {"schema": request_schema(body, service.model)}}

    async def generate() -> Response:
        return Exchange(service, endpoint)

    app.add_api_route(
        path,
        generate,
        methods=["POST"],
        name=endpoint.name,
        response_class=Response,
        response_model=None,
        responses=answers(answer, errors=GENERATION_ERRORS, content="text/event-stream"),
        openapi_extra={"requestBody": {"content": content, "required": True}},
    )


def _add_models(app: FastAPI, model: ServedModel) -> None:
    card: dict[str, Any] = {
        "id": model.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "herd",
        "max_model_len": model.context_length,
    }

    @app.get("/v1/models", response_class=Response, response_model=None, responses=answers(ModelList))
    async def list_models() -> Response:
        """List the served model."""
        return JsonResponse({"object": "list", "data": [card]})

    @app.get(
        "/v1/models/{name:path}",
        response_class=Response,
        response_model=None,
        responses=answers(ModelCard, errors=(404,)),
    )
    async def get_model(name: str = PathParameter(examples=[model.name])) -> Response:
        """Describe the served model."""
        check_model_name(name, model)
        return JsonResponse(card)
