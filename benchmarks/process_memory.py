"""Memory of an application's processes over a run: which of them keeps more and more of it."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path

from benchmarks.chaos.processes import find_processes
from cluster.launch.processes import descendants

_MB = 1e6


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
            found[name] = found.get(name, 0) + _anonymous_bytes(pid)
        self._points.append(found)
        self._num_requests.append(num_requests)
        return sum(found.values())

    def table(self) -> Iterator[str]:
        """Yield the lines of a table: each process at every point, and what its second half grew by."""
        yield "MB after so many requests | " + " | ".join(map(str, self._num_requests)) + " | per 1,000 in 2nd half"
        for name in sorted({name for point in self._points for name in point}):
            read = [point.get(name, 0) / _MB for point in self._points]
            yield f"{name} | " + " | ".join(f"{each:.1f}" for each in read) + f" | {self._slope(read):+.3f} MB"
        sums = [sum(point.values()) / _MB for point in self._points]
        yield "all | " + " | ".join(f"{each:.1f}" for each in sums) + f" | {self._slope(sums):+.3f} MB"

    def growing(self, most_per_thousand_mb: float) -> dict[str, float]:
        """Return the processes whose memory grew by more, in MB per 1,000 requests of the second half; Ray's own aside.

        Ray's keep records of time and of calls, up to bounds of its own.
        """
        slopes = {
            name: self._slope([point[name] / _MB for point in self._points])
            for name in self._points[-1]
            if name.startswith(("FrontDoor", "Router", "LongRouter", "Experts", "Context", "DirectoryActor"))
            and all(name in point for point in self._points)
        }
        return {name: slope for name, slope in slopes.items() if slope > most_per_thousand_mb}

    def _slope(self, values: list[float]) -> float:
        """Return the growth per 1,000 requests, by the line that fits the second half's points best."""
        half = len(values) // 2
        return statistics.linear_regression(self._num_requests[half:], values[half:]).slope * 1000


def _anonymous_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon:"))
