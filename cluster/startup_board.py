"""How far each replica has come while it starts, for the progress display and the status page, and why one failed.

Without a clock: every `now` is of one monotonic clock, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from experts.startup import StartupPhases
from protos.errors import ServingError

_MOST_REPLICAS = 4096
_SILENT_S = 120.0
"""Seconds after which the word of a replica that loads or waits is worth nothing: they report many times a second."""
_FAILED_S = 600.0
"""Seconds for which a failed start is told."""
_MOST_FAILED = 16
"""Failed starts that are told of, the newest: what fails again and again must not hide what does not."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class BoardEntry:
    """The last word of a replica."""

    progress: ReplicaProgress
    """What it said."""
    age_s: float
    """Seconds since."""


class StartupBoard:
    """The last word of every replica, for as long as it may be true.

    A process that dies says nothing more: what it said last goes after a while, and where there are too many, the
    oldest go first.
    """

    def __init__(self) -> None:
        self._entries: dict[str, tuple[ReplicaProgress, float]] = {}  # oldest word first

    def report(self, progress: ReplicaProgress, now: float) -> None:
        """Replace what was known of a replica."""
        self._entries.pop(progress.replica_id, None)
        self._entries[progress.replica_id] = (progress, now)
        while len(self._entries) > _MOST_REPLICAS:
            del self._entries[next(iter(self._entries))]

    def entries(self, now: float) -> tuple[BoardEntry, ...]:
        """Return what is known and may still be true, the oldest word first."""
        self._forget(now)
        return tuple(BoardEntry(progress=each, age_s=now - said_at) for each, said_at in self._entries.values())

    def progress(self, now: float) -> tuple[ReplicaProgress, ...]:
        """Return the same without its age."""
        return tuple(entry.progress for entry in self.entries(now))

    def _forget(self, now: float) -> None:
        failed = [name for name, (each, _) in self._entries.items() if each.phase == "failed"]
        surplus = set(failed[:-_MOST_FAILED])
        for name, (each, said_at) in list(self._entries.items()):
            limit_s = {"ready": float("inf"), "failed": _FAILED_S}.get(each.phase, _SILENT_S)
            if name in surplus or now - said_at > limit_s:
                del self._entries[name]
