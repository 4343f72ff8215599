"""Every replica of the application and its state, from what three sides know of it. Pure.

Ray Serve      which processes there should be, and whether one starts, runs or is stopped
StartupBoard   what one that starts does, and why one failed
Directory      which expert replicas are heard of

starting --> ready <--> silent
|           |          |
failed     draining <----'
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cluster.names import is_experts
from cluster.startup_board import BoardEntry

ReplicaState = Literal["failed", "silent", "starting", "draining", "ready"]
STATES: tuple[ReplicaState, ...] = ("failed", "silent", "starting", "draining", "ready")
"""What needs a look first."""

_STATE_OF: dict[str, ReplicaState] = {"STARTING": "starting", "STOPPING": "draining", "STOPPED": "draining"}
"""By Ray Serve's state; in every other one (RUNNING, UPDATING, RECOVERING, PENDING_MIGRATION) a replica serves."""
_REGISTERS_S = 5.0
"""Seconds that an expert replica may take from saying that it is ready to being in the directory."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeReplica:
    """A replica as Ray Serve knows it."""

    replica_id: str
    """Its name."""
    deployment: str
    """The deployment it belongs to."""
    state: str
    """STARTING, RUNNING, STOPPING ...: ray.serve.schema.ReplicaState."""
    started_at_s: float
    """When it was asked for, in seconds since 1970; when Ray Serve's controller came back, if that was later."""
    host: str = ""
    """Address of its machine; empty before it has a process."""
    pid: int = 0
    """Process id on its host; 0 before it has one."""
    node_id: str = ""
    """Ray's name for its node; empty before it has a process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaInfo:
    """A replica of any deployment and its state."""

    replica_id: str
    """Its name, new after every restart."""
    deployment: str
    """The deployment it belongs to: FrontDoor, Router, Experts-0 ..."""
    state: ReplicaState
    """failed: its start ended with an error. silent: it runs, and the directory hears no heartbeat of it. starting:
    it loads, or waits; experts that are loaded serve already. draining: it answers what it has accepted, then ends.
    ready: it serves."""
    done_bytes: int = 0
    """Bytes of weights read, while it starts."""
    total_bytes: int = 0
    """Bytes of weights to read; 0 where that is not known."""
    waits_for: str = ""
    """What keeps it, where it waits."""
    reason: str = ""
    """Why it failed."""
    since_s: float | None = None
    """When it was asked for, or when it failed, in seconds since 1970; None where that is not known."""
    host: str = ""
    """Address of its machine; empty before it has a process."""
    pid: int = 0
    """Process id on its host; 0 before it has one."""


def read_details(details: Mapping[str, Any], app: str) -> tuple[ServeReplica, ...]:
    """Return the replicas of an application.

    Args:
        details: what `ServeController.get_serve_instance_details` answers: ray.serve.schema.ServeInstanceDetails.
        app: its name; replicas of others are left out.
    """
    deployments = details["applications"].get(app, {"deployments": {}})["deployments"]
    return tuple(
        ServeReplica(
            replica_id=replica["replica_id"],
            deployment=name,
            state=str(getattr(replica["state"], "value", replica["state"])),
            started_at_s=replica.get("start_time_s") or 0.0,
            host=replica.get("node_ip") or "",
            pid=replica.get("pid") or 0,
            node_id=replica.get("node_id") or "",
        )
        for name, deployment in deployments.items()
        for replica in deployment["replicas"]
    )


def replica_roster(
    serve: Sequence[ServeReplica], board: Sequence[BoardEntry], heard: Collection[str] | None, now_s: float
) -> tuple[ReplicaInfo, ...]:
    """Return every replica that Ray Serve knows, and those whose start failed lately: what needs a look first.

    Args:
        serve: all that there are.
        board: what they said while they started; words of others count only where a start failed.
        heard: the expert replicas of the directory; None: it has not been there long enough to miss anybody.
        now_s: seconds since 1970.
    """
    said = {entry.progress.replica_id: entry for entry in board}
    known = {each.replica_id for each in serve}
    roster = [_replica(each, said.get(each.replica_id), heard, now_s) for each in serve]
    roster += [
        _failed(entry, now_s)
        for entry in board
        if entry.progress.phase == "failed" and entry.progress.replica_id not in known
    ]
    return tuple(sorted(roster, key=lambda each: (STATES.index(each.state), each.deployment, each.replica_id)))


def _replica(serve: ServeReplica, entry: BoardEntry | None, heard: Collection[str] | None, now_s: float) -> ReplicaInfo:
    if entry is not None and entry.progress.phase == "failed":
        return _failed(entry, now_s, serve)
    state = _STATE_OF.get(serve.state, "ready")
    if state == "ready" and heard is not None and _is_missed(serve, entry, heard):
        state = "silent"
    is_told = entry is not None and state == "starting"
    return ReplicaInfo(
        replica_id=serve.replica_id,
        deployment=serve.deployment,
        state=state,
        done_bytes=entry.progress.done_bytes if entry and is_told else 0,
        total_bytes=entry.progress.total_bytes if entry and is_told else 0,
        waits_for=entry.progress.waits_for if entry and is_told and entry.progress.phase == "waiting" else "",
        since_s=serve.started_at_s or None,
        host=serve.host,
        pid=serve.pid,
    )


def _is_missed(serve: ServeReplica, entry: BoardEntry | None, heard: Collection[str]) -> bool:
    """Tell whether an expert replica that runs should be in the directory and is not."""
    if not is_experts(serve.deployment) or serve.replica_id in heard:
        return False
    return entry is None or entry.age_s > _REGISTERS_S


def _failed(entry: BoardEntry, now_s: float, serve: ServeReplica | None = None) -> ReplicaInfo:
    progress = entry.progress
    return ReplicaInfo(
        replica_id=progress.replica_id,
        deployment=progress.deployment,
        state="failed",
        done_bytes=progress.done_bytes,
        total_bytes=progress.total_bytes,
        reason=progress.error.message if progress.error else "its log says why",
        since_s=now_s - entry.age_s,
        host=serve.host if serve else "",
        pid=serve.pid if serve else 0,
    )
