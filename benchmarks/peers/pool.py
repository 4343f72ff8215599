"""Workers that stay up between turns while memory allows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .process import IDLE_SHARE, WorkerProcess

_SPARE_BYTES = 1 << 30


class WorkerPool:
    """At most as many workers as fit in memory; who was asked longest ago makes room.

    Args:
        start: starts a worker by name.
        need_bytes: most memory that a worker takes, by name.
        free_bytes: how much memory is left now.
        on_idle: told once about a worker how many processors it keeps busy when it has nothing to do.
    """

    def __init__(
        self,
        start: Callable[[str], WorkerProcess],
        need_bytes: Callable[[str], int],
        free_bytes: Callable[[], int],
        on_idle: Callable[[str, float], None],
    ) -> None:
        self._start = start
        self._need_bytes = need_bytes
        self._free_bytes = free_bytes
        self._on_idle = on_idle
        self._running: dict[str, WorkerProcess] = {}
        self._idle_shares: dict[str, float] = {}

    def get(self, name: str) -> WorkerProcess:
        """Return a running worker; the others that would not keep still are paused."""
        worker = self._running.pop(name, None)
        if worker is None:
            while self._running and self._free_bytes() < self._need_bytes(name) + _SPARE_BYTES:
                self.drop(next(iter(self._running)))
            worker = self._start(name)
        self._running[name] = worker  # last: asked most recently
        return worker

    def rest(self, name: str) -> None:
        """Let a worker wait for its next turn, paused if it would poll meanwhile."""
        worker = self._running.get(name)
        if worker is None:
            return
        if name not in self._idle_shares:
            self._idle_shares[name] = worker.idle_share()
            self._on_idle(name, self._idle_shares[name])
        if self._idle_shares[name] > IDLE_SHARE:
            worker.pause()

    def drop(self, name: str) -> None:
        """End a worker."""
        worker = self._running.pop(name, None)
        if worker is not None:
            worker.end()

    def end_all(self) -> None:
        """End every worker."""
        while self._running:
            self.drop(next(iter(self._running)))


def available_bytes() -> int:
    """Return the memory that new processes can have without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("/proc/meminfo names no MemAvailable")
