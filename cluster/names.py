"""Names of the application and its deployments, as `serve status` and the logs show them."""

from __future__ import annotations

APP = "herd"
FRONT_DOOR = "FrontDoor"
ROUTER = "Router"
LONG_ROUTER = "LongRouter"
CONTEXT = "Context"
_EXPERTS = "Experts-"
PRELOADED = "cluster.preload"
"""The module that Ray is told to import in every process it starts."""


def experts_deployment(group: int) -> str:
    """Return the name of the deployment that serves an expert group, 0-based."""
    return f"{_EXPERTS}{group}"


def is_router(deployment: str) -> bool:
    """Tell whether a deployment's replicas are routers."""
    return deployment in (ROUTER, LONG_ROUTER)


def is_experts(deployment: str) -> bool:
    """Tell whether a deployment serves an expert group."""
    return deployment.startswith(_EXPERTS)


def group_of(deployment: str) -> int:
    """Return the expert group that a deployment serves."""
    return int(deployment.removeprefix(_EXPERTS))
