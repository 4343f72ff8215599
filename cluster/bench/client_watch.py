"""Watches the load generator itself: what it measures is worth nothing while it cannot keep up."""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager

PERIOD_S = 0.02


class ClientWatch:
    """Notes how late the event loop wakes from short sleeps, and the CPU time the process takes."""

    def __init__(self) -> None:
        self.lags_s = array("d")
        """Each sleep's overshoot, in seconds."""
        self._wall_s = self._cpu_s = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch meanwhile."""
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()
        task = asyncio.create_task(self._watch())
        try:
            yield
        finally:
            task.cancel()

    async def _watch(self) -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(PERIOD_S)
            self.lags_s.append(time.perf_counter() - began - PERIOD_S)

    def cpu_cores(self) -> float:
        """Return the CPU seconds per second since the start of watching."""
        wall_s = time.perf_counter() - self._wall_s
        return (time.process_time() - self._cpu_s) / wall_s if wall_s > 0 else 0.0
