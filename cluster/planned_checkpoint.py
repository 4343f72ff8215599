"""The checkpoint of a plan, opened again in the process that needs its weights."""

from __future__ import annotations

from cluster.deployment_plan import DeploymentPlan
from models.checkpoint import Checkpoint, open_checkpoint
from protos.errors import BadCheckpoint


def open_planned_checkpoint(plan: DeploymentPlan) -> Checkpoint:
    """Return it.

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
