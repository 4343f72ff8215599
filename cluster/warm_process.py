"""A process that Ray started ahead of any work, and that has imported by then what replicas run.

Ray gives such a process to the next actor that asks for the same environment. Importing takes seconds where the
processor is busy; what a replica has to do after it does not.
"""

from __future__ import annotations

import importlib
import os
import tempfile
import time
from pathlib import Path

import ray
from ray._raylet import setproctitle  # type: ignore[attr-defined]

SPARE = "ray::IDLE (spare"
"""How the titles of such processes begin, while they import and after."""
_NO_JOB = "ffffffff"
"""Ray's id of no job (`RAY_JOB_ID`): of a process that was started ahead."""
MODULES = (
    "ray.serve._private.replica",
    "cluster.directory_actor",
    "cluster.expert_load",
    "cluster.expert_member",
    "cluster.holdings",
    "cluster.meters",
    "cluster.planned_checkpoint",
    "cluster.registration",
    "cluster.router_deployment",
    "cluster.spare_processes",
    "cluster.startup_report",
    "cluster.weight_source",
    "experts.server",
    "experts.weights",
)
"""All that `cluster.experts_deployment` needs, and routers. Not that module itself: when it is imported tells when Ray
gave the process its replica."""
_REST_S = 0.5
_warm_since: float | None = None


def warm_up() -> None:
    """Import what replicas run, if nobody waits for this process and a replica on this node runs. Takes seconds.

    Before, while everything starts, the processor is wanted by those that others wait for.
    """
    global _warm_since
    if os.environ.get("RAY_JOB_ID") != _NO_JOB or not lock_path().exists():
        return
    setproctitle(f"{SPARE}, importing)")
    for name in MODULES:
        importlib.import_module(name)
    setproctitle(f"{SPARE})")
    _warm_since = time.monotonic()


def lock_path() -> Path:
    """Return the file that whoever keeps this node's spares has locked; it is there once a replica runs."""
    return Path(tempfile.gettempdir()) / f"herd-spares-{ray.get_runtime_context().get_node_id()}"


def was_warm(at_s: float) -> bool:
    """Tell whether this process had been idle for a moment then, everything imported.

    Args:
        at_s: when it was given work, by time.monotonic(). A process that is still importing takes work up right
            afterwards, and nobody knows how long that has waited: it was not warm.
    """
    return _warm_since is not None and at_s - _warm_since > _REST_S
