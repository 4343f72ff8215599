"""The Ray Serve application: which deployments there are and how they are wired.

FrontDoor  -- handle -->  Router (+ Directory)  -- gRPC streams, by the directory -->  Experts-0, Experts-1, ...
          `-- handle -->  LongRouter            -- the same                        -->  Context
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.deployment import Application
from ray.serve.schema import LoggingConfig

from cluster.config import LogSettings
from cluster.context_deployment import Context
from cluster.deployment_plan import DeploymentPlan
from cluster.devices import Device
from cluster.directory_actor import directory_config
from cluster.drain_times import ROUTER_SHUTDOWN_S, drain_times
from cluster.experts_deployment import Experts
from cluster.front_door import FrontDoor
from cluster.names import CONTEXT, FRONT_DOOR, ROUTER, experts_deployment, is_experts
from cluster.roles import group_role, role_of
from cluster.router_deployment import Router
from cluster.serve_scaling import context_replicas, experts_replicas, front_door_replicas, router_replicas

_UNLIMITED = 1_000_000
"""For limits that Herd has itself, nearer to what they protect."""
_HEALTH_PERIOD_S = 1.0
"""Seconds between two calls that tell whether a replica lives: so soon a dead one is replaced. Each call costs the
replica less than 1 ms of CPU time, and Ray Serve's controller as much (2 cores of an AMD EPYC, 2026-11-21)."""
_HEALTH_TIMEOUT_S = 10.0
"""Seconds it has to answer. Ray Serve replaces one that does not three times in a row; a busy one may take its time."""
_WAIT_LOOP_S = 0.1
_FRONT_DOOR_ENVIRONMENT = {
    # One event loop for everything: every gRPC event wakes each loop that the process uses gRPC in.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
}


def build_application(plan: DeploymentPlan) -> Application:
    """Return the application that serves a plan.

    Args:
        plan: what to deploy.
    """
    common = {
        "max_ongoing_requests": _UNLIMITED,
        "graceful_shutdown_wait_loop_s": _WAIT_LOOP_S,
        "graceful_shutdown_timeout_s": ROUTER_SHUTDOWN_S,
        "health_check_period_s": _HEALTH_PERIOD_S,
        "health_check_timeout_s": _HEALTH_TIMEOUT_S,
        "max_constructor_retry_count": 1,
        "logging_config": _ray_serves_lines(plan.settings.log),
    }
    # CPUs are not reserved: all replicas share what there is, and `threads` says how.
    actor: dict[str, Any] = {"num_cpus": 0}
    directory = directory_config(plan.settings)
    routers = [
        serve.deployment(
            Router,
            name=name,
            request_router_config=RequestRouterConfig(request_router_class="cluster.routing.RouterChoice"),
            deployment_actors=[directory] if name == ROUTER else None,
            ray_actor_options=actor | _place(plan, name) | _gpu(plan.devices.router),
            **router_replicas(plan, name),
            **common,
        ).bind(plan)
        for name in plan.pools
    ]
    called_by_address = [
        serve.deployment(
            Experts,
            name=experts_deployment(group),
            ray_actor_options=actor | _place(plan, experts_deployment(group)) | _gpu(plan.devices.experts),
            **experts_replicas(plan),
            **common,
        ).bind(plan, group)
        for group in range(len(plan.expert_groups))
    ]
    if plan.segment_tokens:
        called_by_address.append(
            serve.deployment(
                Context,
                name=CONTEXT,
                ray_actor_options=actor | _place(plan, CONTEXT),
                **context_replicas(plan),
                **common,
            ).bind(plan)
        )
    limits = plan.settings.limits
    front_door = serve.deployment(
        FrontDoor,
        name=FRONT_DOOR,
        ray_actor_options=actor | _place(plan, FRONT_DOOR) | {"runtime_env": {"env_vars": _FRONT_DOOR_ENVIRONMENT}},
        **front_door_replicas(plan),
        **common | {"graceful_shutdown_timeout_s": drain_times(limits.drain_s, limits.lame_duck_s).shutdown_s},
    )
    # The front door never calls the last. It takes their handles because that makes them part of the application.
    return front_door.bind(plan, *routers, *called_by_address)


def _place(plan: DeploymentPlan, deployment: str) -> dict[str, dict[str, float]]:
    """Return the options that take a replica to a node of its role, where there are roles."""
    if not plan.by_role:
        return {}
    roles = [role_of(deployment)]
    if plan.by_expert_group and is_experts(deployment):
        roles.append(group_role(deployment))
    return {"resources": dict.fromkeys(roles, 1.0)}


def _ray_serves_lines(settings: LogSettings) -> LoggingConfig:
    """Return how Ray Serve logs beside Herd: with no line for each call, as Herd has one for each request."""
    return LoggingConfig(
        encoding="JSON" if settings.format == "json" else "TEXT",
        log_level="INFO" if settings.level in ("debug", "info") else settings.level.upper(),
        enable_access_log=False,
    )


def _gpu(device: Device) -> dict[str, int]:
    """Return the options that reserve a replica's GPU, and have Ray show it no other."""
    return {"num_gpus": 1} if device == "cuda" else {}
