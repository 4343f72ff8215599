"""The application as Ray Serve imports it, on a cluster that is there: `import_path: cluster.serve_app:build`.

`herd serve` starts a Ray of its own and does not come here. A KubeRay RayService does, with `args` as BuildArgs.
"""

# No `from __future__ import annotations`: Ray Serve looks at the type of `build`'s argument.
import hashlib
import time
from dataclasses import replace
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from ray.serve.deployment import Application

from cluster.application import build_application
from cluster.config import ClusterConfig
from cluster.config_source import load_config
from cluster.deployment_plan import DeploymentPlan
from cluster.devices import has_expert_replicas
from cluster.machine import read_machine
from cluster.plan import make_plan
from cluster.planned_model import load_planned_model
from cluster.role_machines import find_machines
from cluster.roles import CONTEXT_ROLE, EXPERTS_ROLE, ROUTER_ROLE
from models.checkpoint import open_checkpoint
from models.presets import resolve_model
from protos.errors import BadConfig

_NODES_S = 3600.0
"""Seconds for the first node of each role: one with GPUs may have to be made, and to fetch an image."""
_FILE_S = 300.0
"""Seconds for a mounted file to become the one that was meant: a kubelet looks for changes once a minute or two."""
_POLL_S = 0.5
_THIS_MACHINE = "127.0.0.1"


class BuildArgs(BaseModel):
    """What `args` of the application may say."""

    model_config = ConfigDict(extra="forbid")

    config: Path | None = None
    """Settings in YAML or JSON, as of `herd serve --config`; None: the defaults."""
    sha256: str | None = None
    """Of that file, in hex: an older one that is still mounted is not read. None: whatever is there."""
    by_role: bool = False
    """Run each replica on a node that offers its role (`cluster.roles`), with that node to itself. Off: anywhere, and
    all of them share a machine like the one this runs on."""
    by_expert_group: bool = False
    """With `by_role`: run each expert replica on a node that offers the role of its group as well."""


def build(args: BuildArgs) -> Application:
    """Return the application that settings describe.

    Args:
        args: where the settings are, and what the cluster is like.

    Raises:
        ServingError: settings, model and nodes do not go together.
    """
    if args.config is not None and args.sha256 is not None:
        wait_for_file(args.config, args.sha256, _FILE_S)
    plan = plan_on_cluster(load_config(args.config), by_role=args.by_role)
    return build_application(replace(plan, by_expert_group=args.by_role and args.by_expert_group))


def plan_on_cluster(settings: ClusterConfig, *, by_role: bool) -> DeploymentPlan:
    """Plan for the nodes of the Ray cluster that this process belongs to.

    Args:
        settings: checked.
        by_role: see BuildArgs.

    Raises:
        ServingError: the plan cannot be made.
    """
    folder = resolve_model(settings.model.path)
    checkpoint, name = open_checkpoint(folder), folder.resolve().name
    if not by_role:
        plan = make_plan(settings, checkpoint, name, read_machine())
    else:
        settings = reachable(settings)
        has_experts = has_expert_replicas(settings, checkpoint.config)
        roles = (ROUTER_ROLE, *[EXPERTS_ROLE] * has_experts, *[CONTEXT_ROLE] * (settings.context.shards > 0))
        machines = find_machines(roles, _NODES_S)
        plan = make_plan(settings, checkpoint, name, machines[ROUTER_ROLE], by_role=machines)
    load_planned_model(plan)  # a broken tokenizer is found here too
    return plan


def wait_for_file(file: Path, sha256: str, timeout_s: float) -> None:
    """Return once a file is the one that was meant.

    Args:
        file: the path.
        sha256: of its bytes, in hex.
        timeout_s: seconds after which to give up.

    Raises:
        BadConfig: it is another one, or not there.
    """
    give_up_at = time.monotonic() + timeout_s
    while (found := _digest(file)) != sha256:
        if time.monotonic() > give_up_at:
            raise BadConfig(f"{file}: expected the file with SHA-256 {sha256}, found {found}; see that it is mounted")
        time.sleep(_POLL_S)


def _digest(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        return f"none: {error.strerror}"


def reachable(settings: ClusterConfig) -> ClusterConfig:
    """Return the settings with replicas at their nodes' addresses, where they would be heard on one machine alone."""
    for section in ("experts", "context"):
        old = getattr(settings, section)
        if old.host == _THIS_MACHINE:
            settings = replace(settings, **{section: replace(old, host=None)})
    return settings
