"""What an operator asks a front door over HTTP: health, metrics, the status page."""

from __future__ import annotations

import asyncio

from fastapi import FastAPI
from starlette.responses import Response

from cluster.cluster_view import ClusterView
from cluster.front_door_metrics import CONTENT_TYPE
from cluster.openai.answer_objects import Health
from cluster.openai.json_text import JsonResponse
from cluster.openai.openapi_page import answers
from cluster.router_client import PlacementInfo, RouterLoad
from cluster.service import InferenceService
from cluster.status_page.page import page_response
from cluster.status_page.status import status_object
from protos.errors import ServingError

_SCRAPED_PLACEMENT_S = 10.0
"""Seconds a scrape's placement may be old: an open status page has asked already, and replicas report each second or
so anyway."""


def add_operations(app: FastAPI, service: InferenceService) -> None:
    """Add the operator's paths to the front door's application."""
    view = ClusterView(service)

    @app.get("/health", response_class=Response, response_model=None, responses=answers(Health, errors=(503,)))
    async def health() -> Response:
        """Answer 200 when a router answers or the first request starts one, 503 otherwise."""
        # However many ask, without an API key, routers are asked once at a time.
        loads = await view.load.get(max_age_s=0)
        return JsonResponse({"status": "ok", "routers": len(loads.value)})

    @app.get("/metrics", response_class=Response, response_model=None, responses=answers(None, content="text/plain"))
    async def metrics() -> Response:
        """Return the metrics in Prometheus' text format."""
        loads, placement = await asyncio.gather(_load(view), _placement(view))
        text = service.metrics.render(
            loads,
            service.class_loads(),
            placement,
            num_experts=service.model.config.num_experts,
            is_draining=service.is_draining,
        )
        return Response(text, headers={"content-type": CONTENT_TYPE})

    @app.get(
        "/status.json",
        response_class=Response,
        response_model=None,
        responses=answers(None, content="application/json"),
    )
    async def status() -> Response:
        """Return what the status page shows."""
        return JsonResponse(await status_object(service, view))

    @app.get("/", response_model=None, include_in_schema=False)
    async def page() -> Response:
        """Show the status page."""
        return page_response("index.html")

    @app.get("/status/{name}", response_model=None, include_in_schema=False)
    async def page_file(name: str) -> Response:
        """Return a file of the status page."""
        return page_response(name)


async def _load(view: ClusterView) -> tuple[RouterLoad, ...]:
    try:
        return (await view.load.get(max_age_s=0)).value
    except ServingError:
        return ()  # the counters are worth having all the same


async def _placement(view: ClusterView) -> PlacementInfo | None:
    """Return where the experts are and which replicas there are; None where that is not known."""
    try:
        return (await view.placement.get(_SCRAPED_PLACEMENT_S)).value
    except ServingError:
        return None
