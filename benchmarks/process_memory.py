"""Memory of an application's processes over a run: which of them keeps more and more of it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from benchmarks.chaos.processes import find_processes
from cluster.launch.processes import descendants

_MB = 1e6
_FITTED = 3
"""Numbers that a line with a jump has."""
_FEWEST = _FITTED + 1
"""Points that it and its error take."""
_HERDS = ("FrontDoor", "Router", "LongRouter", "Experts", "Context", "DirectoryActor")


class MemoryWatch:
    """Reads how much anonymous memory each process has: its own, without files and memory that it shares.

    Args:
        root_pid: of the process below which they are.
    """

    def __init__(self, root_pid: int) -> None:
        self._root_pid = root_pid
        self._points: list[dict[str, int]] = []
        self._num_requests: list[int] = []

    def read(self, num_requests: int) -> int:
        """Read all processes; return the sum in bytes.

        Args:
            num_requests: sent until now.
        """
        names = {each.pid: each.name for each in find_processes(self._root_pid)}
        found: dict[str, int] = {}
        for pid in descendants(self._root_pid):
            name = f"{names[pid]} ({pid})" if pid in names else "Ray's other processes"
            found[name] = found.get(name, 0) + memory_bytes(pid, "RssAnon")
        self._points.append(found)
        self._num_requests.append(num_requests)
        return sum(found.values())

    def table(self) -> Iterator[str]:
        """Yield the lines of a table: each process at every point, and what its second half grew by."""
        yield "MB after so many requests | " + " | ".join(map(str, self._num_requests)) + " | per 1,000 in 2nd half"
        rows = {name: self._of(name) for name in sorted({name for point in self._points for name in point})}
        rows["all"] = [sum(point.values()) / _MB for point in self._points]
        for name, read in rows.items():
            growth, error = self._growth(read)
            yield f"{name} | " + " | ".join(f"{each:.1f}" for each in read) + f" | {growth:+.2f} MB, +- {error:.2f}"

    def growing(self, most_per_thousand_mb: float) -> dict[str, float]:
        """Return the processes that surely grew by more, in MB per 1,000 requests of the second half; Ray's own aside.

        Ray's keep records of time and of calls, up to bounds of its own. Surely: by two standard errors.
        """
        found = {}
        for name, point in self._points[-1].items():
            if point and name.startswith(_HERDS) and all(name in each for each in self._points):
                growth, error = self._growth(self._of(name))
                if growth - 2 * error > most_per_thousand_mb:
                    found[name] = growth
        return found

    def _of(self, name: str) -> list[float]:
        return [point.get(name, 0) / _MB for point in self._points]

    def _growth(self, values: list[float]) -> tuple[float, float]:
        """Return what the second half grew by per 1,000 requests beside its largest jump, and the standard error.

        The slope of the line that fits best, with another height before the jump than after it. An allocator takes some
        MB at once, and may do so once late in a run; what leaks grows on both sides of that, unless it does so in jumps
        so rare that only a longer run tells.
        """
        half = len(values) // 2
        at, read = [each / 1000 for each in self._num_requests[half:]], values[half:]
        if len(set(at)) < _FEWEST:
            return 0.0, math.inf
        jump = max(range(1, len(read)), key=lambda index: read[index] - read[index - 1])
        points = [*_centred(at[:jump], read[:jump]), *_centred(at[jump:], read[jump:])]
        spread = sum(x * x for x, _ in points)
        slope = sum(x * y for x, y in points) / spread
        left = sum((y - slope * x) ** 2 for x, y in points)
        return slope, math.sqrt(left / (len(points) - _FITTED) / spread)


def _centred(at: list[float], values: list[float]) -> Iterator[tuple[float, float]]:
    """Yield points as they lie around their mean."""
    mean_at, mean = statistics.fmean(at), statistics.fmean(values)
    return ((x - mean_at, y - mean) for x, y in zip(at, values, strict=True))


def memory_bytes(pid: int, field: Literal["VmRSS", "RssAnon", "Pss"]) -> int:
    """Return what a process has resident, in all, of its own, or in proportion to who shares it; 0: it is gone."""
    file = "smaps_rollup" if field == "Pss" else "status"
    try:
        lines = Path(f"/proc/{pid}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), 0)
