"""The directory's view, as front doors show it."""

from __future__ import annotations

from cluster.directory import ExpertReplica
from cluster.directory_actor import DirectoryOverview
from cluster.layer_load import sum_layer_loads
from cluster.placement_load import ReplicaReport
from cluster.router_client import ExpertReplicaInfo, PlacementInfo


def placement_info(overview: DirectoryOverview, *, is_current: bool = True) -> PlacementInfo:
    """Return where the experts are, how busy they are there, and what happened lately."""
    known = [overview.reports.get(replica.holder.replica_id) for replica in overview.snapshot.replicas]
    return PlacementInfo(
        version=overview.snapshot.version,
        expert_replicas=tuple(
            _replica_info(replica, report) for replica, report in zip(overview.snapshot.replicas, known, strict=True)
        ),
        events=overview.events,
        departures=overview.departures,
        num_draining_nodes=len(overview.snapshot.draining_nodes),
        layer_load=sum_layer_loads([each.layer_load for each in known if each and each.layer_load]),
        roster=overview.roster,
        roster_problem=overview.roster_problem,
        is_current=is_current,
    )


def _replica_info(replica: ExpertReplica, report: ReplicaReport | None) -> ExpertReplicaInfo:
    return ExpertReplicaInfo(
        replica_id=replica.holder.replica_id,
        group=replica.group,
        address=replica.holder.address,
        expert_ids=replica.holder.expert_ids,
        weight_bytes=replica.weight_bytes,
        pid=replica.pid,
        registered_at_s=replica.registered_at_s,
        host=replica.holder.location.machine or replica.holder.host,
        home_ids=replica.home_ids,
        tokens_per_s=dict(report.tokens_per_s) if report else {},
        queue_s=report.queue_s if report else 0.0,
        compute_s=report.compute_s if report else 0.0,
        spare_bytes=report.spare_bytes if report else 0,
    )
