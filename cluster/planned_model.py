"""What a plan serves as front doors know it: tokenizer and defaults, no weights."""

from __future__ import annotations

from cluster.deployment_plan import DeploymentPlan
from cluster.served_model import PlannedCache, ServedModel, load_served_model


def load_planned_model(plan: DeploymentPlan) -> ServedModel:
    """Return the plan's model, read from its folder.

    Raises:
        BadCheckpoint: the tokenizer is unusable.
        BadConfig: generation_config.json is unusable.
    """
    return load_served_model(
        plan.folder,
        plan.config,
        name=plan.model_name,
        context_length=plan.context_length,
        dtype=plan.dtype,
        fingerprint=plan.fingerprint,
        cache=_planned_cache(plan),
        long_from=plan.settings.long.from_tokens,
        raised_by=_raised_by(plan),
        experts_in_router=plan.experts_in_router,
    )


def _raised_by(plan: DeploymentPlan) -> str:
    """Name the settings that make a longer context possible."""
    section = "router" if plan.long is None else "long"
    length = "model.context_length" if plan.long is None else "long.context_length"
    return f"{length} and {'context' if plan.segment_tokens else section}.kv_bytes"


def _planned_cache(plan: DeploymentPlan) -> PlannedCache:
    """Return what the engines' cache will be."""
    layout = plan.engine_limits.layout(plan.config, plan.dtype)
    return PlannedCache(layout, layout.plan_bytes(plan.engine_limits.paging(layout)))
