"""Where an expert replica takes its weights from: the checkpoint's files, or a replica that holds them already."""

from __future__ import annotations

import logging

import ray
from ray.exceptions import RayError

from cluster.deployment_plan import DeploymentPlan
from cluster.directory_actor import DirectoryOverview, find_directories
from cluster.file_system import file_system_of, is_far
from cluster.names import APP, ROUTER
from cluster.torch_names import dtype_of
from experts.holder_source import HolderSource
from experts.source import ExpertSource
from models.checkpoint import KeptCodes

_LOG = logging.getLogger(__name__)
_ASK_S = 2.0


def weight_source(plan: DeploymentPlan, files: ExpertSource, replica_id: str) -> ExpertSource:
    """Return what a replica reads experts from, as `experts.copy_from_peers` says.

    Args:
        plan: what to run.
        files: the checkpoint, opened.
        replica_id: who reads; never copies from itself.
    """
    asked = plan.settings.experts.copy_from_peers
    if isinstance(files, KeptCodes) and files.keeps_experts:
        return files
    is_packed = plan.devices.experts == "cuda"  # a GPU's forms are not handed out
    if asked == "never" or (asked == "auto" and (is_packed or not is_far(file_system_of(plan.folder)))):
        return files

    def find(expert: int) -> str | None:
        address = _find_holder(expert, replica_id)
        _LOG.info("expert %d: %s", expert, f"copied from {address}" if address else "read from files, nobody holds it")
        return address

    return HolderSource(
        find, files, dtype_of(plan.dtype), plan.settings.model.quantize, plan.settings.experts.identity()
    )


def _find_holder(expert: int, asker: str) -> str | None:
    try:
        for directory in find_directories(APP, ROUTER):
            overview: DirectoryOverview = ray.get(directory.overview.remote(), timeout=_ASK_S)
            return overview.snapshot.holder_of(expert, asker)
    except (RayError, TimeoutError) as error:
        _LOG.warning("the directory does not say who holds expert %d: %s", expert, error)
    return None
