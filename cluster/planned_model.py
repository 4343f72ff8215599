"""What a plan serves, opened again in the process that needs it."""

from __future__ import annotations

from cluster.plan import DeploymentPlan
from cluster.served_model import PlannedCache, ServedModel, load_served_model
from models.checkpoint import Checkpoint, open_checkpoint
from protos.errors import BadCheckpoint
from router.kv_cache.codec import dtype_name


def open_planned_checkpoint(plan: DeploymentPlan) -> Checkpoint:
    """Return the plan's checkpoint, for routers and experts.

    Raises:
        BadCheckpoint: it is not the one that was planned for: another machine's copy, or changed since.
    """
    checkpoint = open_checkpoint(plan.folder)
    if checkpoint.fingerprint != plan.fingerprint:
        raise BadCheckpoint(
            f"{plan.folder}: expected the checkpoint {plan.fingerprint}, found {checkpoint.fingerprint}: its files "
            "changed while Herd started, or differ on this machine; start again with the same files everywhere"
        )
    return checkpoint


def load_planned_model(plan: DeploymentPlan) -> ServedModel:
    """Return the plan's model as front doors know it: tokenizer and defaults, no weights.

    Raises:
        BadCheckpoint: the tokenizer is unusable.
        BadConfig: generation_config.json is unusable.
    """
    return load_served_model(
        plan.folder,
        plan.config,
        name=plan.model_name,
        context_length=plan.context_length,
        dtype=plan.dtype_name,
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
    layout = plan.engine_limits.layout(plan.config, dtype_name(plan.dtype))
    return PlannedCache(layout, layout.plan_bytes(plan.engine_limits.paging(layout)))
