"""Finds, in seconds and before Ray starts, the reasons why a start cannot succeed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.auth.guard import Guard
from cluster.config import ClusterConfig
from cluster.imports import check_imports
from cluster.machine import check_port, read_machine
from cluster.trace_start import check_tracing
from cluster.versions import check_versions
from protos.tls import Identity

if TYPE_CHECKING:
    from cluster.deployment_plan import DeploymentPlan


def check_start(settings: ClusterConfig) -> None:
    """Check what can be checked in a moment.

    Raises:
        StartupError: Herd cannot start like this.
    """
    check_imports()
    check_versions()
    check_tracing(settings.trace)
    Guard(settings.auth.file)
    if settings.tls.files is not None:
        Identity(settings.tls.files)
    settings.experts.identity()
    check_port(settings.http.port, "HTTP", "--http-port")
    check_port(settings.grpc.port, "gRPC", "--grpc-port")


def plan_start(settings: ClusterConfig) -> DeploymentPlan:
    """Open the model and plan its deployment. Imports torch.

    Raises:
        StartupError: there is no such model, it is broken, or it does not fit.
    """
    from cluster.plan import make_plan
    from cluster.planned_model import load_planned_model
    from models.checkpoint import open_checkpoint
    from models.presets import resolve_model

    folder = resolve_model(settings.model.path)
    plan = make_plan(settings, open_checkpoint(folder), folder.resolve().name, read_machine())
    load_planned_model(plan)  # a broken tokenizer is found here too
    return plan
