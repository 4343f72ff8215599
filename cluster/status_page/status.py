"""What the status page shows, as JSON."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Any, TypeVar

from cluster.cluster_view import ClusterView
from cluster.layer_load import LayerLoad
from cluster.router_client import PlacementInfo, RouterLoad
from cluster.service import InferenceService
from cluster.shared_answer import Dated, SharedAnswer
from cluster.version import herd_version
from protos.errors import ServingError
from router.transport.health import TransportHealth

Value = TypeVar("Value")

_MAX_AGE_S = 0.5
"""A page asks each second: with a limit of half of that, none sees the same answer twice."""


async def status_object(service: InferenceService, view: ClusterView) -> dict[str, Any]:
    """Return the state of this moment; what cannot be reached is empty, and the `error` beside it says why."""
    (loads, routers_error), (placement, experts_error) = await asyncio.gather(
        _answer(view.load), _answer(view.placement)
    )
    known = placement.value if placement else PlacementInfo(version=0)
    if not known.is_current:
        experts_error = (
            "expected the directory to answer, found it silent: it is being restarted; this is its last word"
        )
    return {
        "version": herd_version(),
        "now_s": time.time(),
        "model": _model_object(service),
        "sequences_in_flight": service.num_sequences,
        "routers": [_router_object(each) for each in loads.value] if loads else [],
        "routers_at_s": loads.at_s if loads else None,
        "routers_error": routers_error,
        "placement_version": known.version,
        "expert_replicas": [asdict(each) for each in known.expert_replicas],
        "layer_load": _layer_load_object(known.layer_load, service.model.config.num_experts),
        "replicas": [asdict(each) for each in known.roster],
        "replicas_error": known.roster_problem or None,
        "events": [asdict(each) for each in known.events],
        "experts_error": experts_error,
    }


async def _answer(question: SharedAnswer[Value]) -> tuple[Dated[Value] | None, str | None]:
    """Return an answer, or why there is none."""
    try:
        return await question.get(_MAX_AGE_S), None
    except ServingError as error:
        return None, error.message


def _router_object(router: RouterLoad) -> dict[str, Any]:
    dispatches = None if router.dispatches is None else _dispatches_object(router.dispatches)
    return {"replica_id": router.replica_id, "pid": router.pid, **asdict(router.load), "dispatches": dispatches}


def _dispatches_object(health: TransportHealth) -> dict[str, Any]:
    return {
        **asdict(health.counts),
        "ejections": health.ejections,
        "ejected": sorted(health.ejected),
        "lanes": {replica_id: lane._asdict() for replica_id, lane in sorted(health.lanes.items())},
    }


def _layer_load_object(load: LayerLoad | None, num_experts: int) -> list[dict[str, Any]]:
    if load is None:
        return []
    return [{"layer": layer, "tokens_per_s": row} for layer, row in load.rows(num_experts).items()]


def _model_object(service: InferenceService) -> dict[str, Any]:
    model = service.model
    return {
        "name": model.name,
        "context_length": model.context_length,
        "has_tokenizer": model.has_tokenizer,
        "num_layers": model.config.num_layers,
        "num_moe_layers": len(model.config.moe_layers),
        "num_experts": model.config.num_experts,
        "experts_per_token": model.config.experts_per_token,
        "experts_in_router": model.experts_in_router,
        "dtype": model.dtype,
        "fingerprint": model.fingerprint,
    }
