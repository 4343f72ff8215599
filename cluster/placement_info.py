"""The directory's view, as front doors show it."""

from __future__ import annotations

import asyncio

from ray.exceptions import RayError

from cluster.directory import ExpertReplica
from cluster.directory_actor import DirectoryOverview, find_directories
from cluster.placement_load import ReplicaReport
from cluster.router_client import ExpertReplicaInfo, PlacementInfo
from protos.errors import NoReplica


def placement_info(overview: DirectoryOverview, *, is_current: bool = True) -> PlacementInfo:
    """Return where the experts are, how busy they are there, and what happened lately."""
    return PlacementInfo(
        version=overview.snapshot.version,
        expert_replicas=tuple(
            _replica_info(replica, overview.reports.get(replica.holder.replica_id))
            for replica in overview.snapshot.replicas
        ),
        events=overview.events,
        is_current=is_current,
    )


async def ask_directory(app: str, deployment: str) -> PlacementInfo:
    """Return what a deployment's directory knows, asked from outside the deployment.

    Args:
        app: name of the application.
        deployment: whose directory it is.

    Raises:
        NoReplica: it does not run.
    """
    try:
        for directory in await asyncio.to_thread(find_directories, app, deployment):
            return placement_info(await directory.overview.remote())
    except RayError as error:
        raise NoReplica(f"expected the directory to answer, found it gone: {error}; it is being restarted") from error
    raise NoReplica("expected a directory, found none; it is being restarted")


def _replica_info(replica: ExpertReplica, report: ReplicaReport | None) -> ExpertReplicaInfo:
    return ExpertReplicaInfo(
        replica_id=replica.holder.replica_id,
        group=replica.group,
        address=replica.holder.address,
        expert_ids=replica.holder.expert_ids,
        weight_bytes=replica.weight_bytes,
        pid=replica.pid,
        registered_at_s=replica.registered_at_s,
        host=replica.holder.host,
        home_ids=replica.home_ids,
        tokens_per_s=dict(report.tokens_per_s) if report else {},
        queue_s=report.queue_s if report else 0.0,
        compute_s=report.compute_s if report else 0.0,
        spare_bytes=report.spare_bytes if report else 0,
    )
