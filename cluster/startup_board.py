"""How far each replica has come while it starts, for the progress display and for the reason of a failed start."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from experts.startup import StartupPhases
from protos.errors import ServingError


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaProgress:
    """Where one replica is."""

    replica_id: str
    """Its name."""
    deployment: str
    """The deployment it belongs to."""
    phase: Literal["loading", "waiting", "ready", "failed"]
    """What it does: read weights, wait for other replicas, serve; or that it ended."""
    done_bytes: int = 0
    """Bytes of weights read."""
    total_bytes: int = 0
    """Bytes of weights to read."""
    waits_for: str = ""
    """What keeps it, when it waits."""
    error: ServingError | None = None
    """Why it ended, when it failed."""
    startup: StartupPhases | None = None
    """What took how long, of an expert replica that is ready."""


class StartupBoard:
    """The last word of every replica."""

    def __init__(self) -> None:
        self._progress: dict[str, ReplicaProgress] = {}

    def report(self, progress: ReplicaProgress) -> None:
        """Replace what was known of a replica."""
        self._progress[progress.replica_id] = progress

    def progress(self) -> tuple[ReplicaProgress, ...]:
        """Return what is known, in the order the replicas came."""
        return tuple(self._progress.values())
