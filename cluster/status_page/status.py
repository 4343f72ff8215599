"""What the status page shows, as JSON, and the page itself."""

from __future__ import annotations

from dataclasses import asdict
from functools import cache
from importlib.resources import files
from typing import Any

from cluster.router_client import PlacementInfo, RouterLoad
from cluster.service import InferenceService
from cluster.version import herd_version
from protos.errors import ServingError


async def status_object(service: InferenceService) -> dict[str, Any]:
    """Return the state of this moment; what cannot be reached is empty, and `error` says why."""
    loads: tuple[RouterLoad, ...] = ()
    placement = PlacementInfo(version=0)
    error: str | None = None
    try:
        loads = await service.load()
        placement = await service.describe()
    except ServingError as caught:
        error = caught.message
    return {
        "version": herd_version(),
        "model": _model_object(service),
        "sequences_in_flight": service.admission.num_sequences,
        "routers": [{"replica_id": each.replica_id, **asdict(each.load)} for each in loads],
        "placement_version": placement.version,
        "expert_replicas": [asdict(each) for each in placement.expert_replicas],
        "error": error,
    }


@cache
def read_page() -> str:
    """Return the page's HTML."""
    return files(__package__).joinpath("index.html").read_text(encoding="utf-8")


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
        "dtype": model.dtype,
        "fingerprint": model.fingerprint,
    }
