"""What tells Ray Serve how to scale each deployment: nothing, unless the settings leave room for it."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from cluster.autoscaling import Bounds, Pace
from cluster.deployment_plan import DeploymentPlan
from cluster.names import CONTEXT, ROUTER, experts_deployment

_REPORT_S = 0.5
"""Seconds between two reports of a replica."""
_LOOK_BACK_S = 2.0
"""Seconds of reports that a decision is made from."""
_SHARDS_USE = 0.85
"""Part of their room that context shards aim to fill."""


def front_door_replicas(plan: DeploymentPlan) -> dict[str, Any]:
    """Return the options of the FrontDoor deployment that say how many replicas there are."""
    scaling = plan.settings.scaling
    bounds = scaling.front_doors()
    return _replicas(plan, "FrontDoorPolicy", bounds.min_replicas, bounds, Pace(down_after_s=scaling.down_after_s))


def router_replicas(plan: DeploymentPlan, deployment: str) -> dict[str, Any]:
    """Return the same of a deployment of routers."""
    scaling, pool = plan.settings.scaling, plan.pools[deployment]
    policy = "RouterPolicy" if deployment == ROUTER else "LongRouterPolicy"
    return _replicas(plan, policy, pool.replicas, pool.bounds, scaling.pace(scaling.router_use))


def experts_replicas(plan: DeploymentPlan) -> dict[str, Any]:
    """Return the same of each Experts deployment."""
    scaling, replicas = plan.settings.scaling, plan.settings.experts.replicas_per_group
    return _replicas(plan, "ExpertsPolicy", replicas, plan.expert_bounds, scaling.pace(scaling.experts_use))


def context_replicas(plan: DeploymentPlan) -> dict[str, Any]:
    """Return the same of the Context deployment."""
    context = plan.settings.context
    return _replicas(plan, "ContextPolicy", context.shards, context.bounds, plan.settings.scaling.pace(_SHARDS_USE))


def _replicas(plan: DeploymentPlan, policy: str, first: int, bounds: Bounds, pace: Pace) -> dict[str, Any]:
    """Return a fixed number, or once anything is scaled, bounds and policy: policies know of each other."""
    if not plan.is_scaled:
        return {"num_replicas": first}
    scaling = plan.settings.scaling
    groups = [experts_deployment(group) for group in range(len(plan.expert_groups))]
    kwargs = {
        "pace": dataclasses.asdict(pace),
        "targets": dataclasses.asdict(scaling.targets),
        "zero_after_s": scaling.zero_after_s,
        "sharing": [*plan.pools, *groups, *([CONTEXT] if plan.segment_tokens else [])],
        "budget": scaling.budget,
    }
    with warnings.catch_warnings():
        # Ray means to replace the interval by an environment variable, which 2.60 does not read yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        return {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=bounds.min_replicas,
                max_replicas=bounds.max_replicas,
                initial_replicas=first,
                metrics_interval_s=_REPORT_S,
                look_back_period_s=_LOOK_BACK_S,
                # Our policies wait as long as they want to.
                upscale_delay_s=0.0,
                downscale_delay_s=0.0,
                policy=AutoscalingPolicy(policy_function=f"cluster.scaling_policies:{policy}", policy_kwargs=kwargs),
            )
        }
