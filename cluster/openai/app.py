"""The HTTP application: which path does what."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI
from starlette.responses import Response

from cluster.metrics import CONTENT_TYPE
from cluster.openai.answer import Endpoint
from cluster.openai.bodies import ChatBody, CommonBody, CompletionsBody
from cluster.openai.body_limit import BodyLimit
from cluster.openai.chat import ChatEndpoint
from cluster.openai.completions import CompletionsEndpoint
from cluster.openai.error_object import add_error_handlers
from cluster.openai.exchange import Exchange
from cluster.openai.json_text import JsonResponse
from cluster.served_model import ServedModel
from cluster.service import InferenceService
from cluster.status_page.status import read_page, status_object
from cluster.validation import check_model_name
from cluster.version import herd_version
from protos.errors import NoReplica


def build_app(service: InferenceService) -> FastAPI:
    """Build the front door's HTTP application.

    Args:
        service: answers the requests; its limits are the application's.
    """
    # The interactive pages of FastAPI load scripts from elsewhere; /openapi.json is enough.
    app = FastAPI(title="Herd", version=herd_version(), docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=service.limits.max_body_bytes)
    add_error_handlers(app)
    _add_generation(app, "/v1/completions", service, CompletionsEndpoint(), CompletionsBody)
    _add_generation(app, "/v1/chat/completions", service, ChatEndpoint(), ChatBody)
    _add_models(app, service.model)
    _add_operations(app, service)
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


def _add_operations(app: FastAPI, service: InferenceService) -> None:
    @app.get("/health", response_model=None)
    async def health() -> Response:
        """Answer 200 when a router answers, 503 otherwise."""
        loads = await service.load()
        return JsonResponse({"status": "ok", "routers": len(loads)})

    @app.get("/metrics", response_model=None)
    async def metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        try:
            loads = await service.load()
        except NoReplica:
            loads = ()  # the counters are worth having all the same
        return Response(
            service.metrics.render(loads, service.admission.num_sequences), headers={"content-type": CONTENT_TYPE}
        )

    @app.get("/status.json", response_model=None)
    async def status() -> Response:
        """Return what the status page shows."""
        return JsonResponse(await status_object(service))

    @app.get("/", response_model=None, include_in_schema=False)
    async def page() -> Response:
        """Show the status page."""
        return Response(read_page(), media_type="text/html")
