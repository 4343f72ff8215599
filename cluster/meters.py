"""Rates of counters that only grow, and how long experts compute: what replicas report for scaling."""

from __future__ import annotations

from experts.batcher import Batcher


class RateMeter:
    """Growth per second of a counter between two readings."""

    def __init__(self) -> None:
        self._last: tuple[float, float] | None = None

    def read(self, total: float, now: float) -> float:
        """Return the rate since the last reading; 0 at the first.

        Args:
            total: the counter; it never falls.
            now: seconds on a monotonic clock.
        """
        last, self._last = self._last, (total, now)
        if last is None or now <= last[1]:
            return 0.0
        return max(total - last[0], 0.0) / (now - last[1])


class ExpertMeter:
    """What an expert replica reports.

    Args:
        batcher: what computes there.
    """

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._tokens, self._busy = RateMeter(), RateMeter()
        self._capacity = 0.0

    def stats(self, now: float) -> dict[str, float]:
        """Return tokens per second, tokens per second of computing, and seconds of computing that wait.

        Args:
            now: seconds on a monotonic clock.
        """
        rate = self._tokens.read(self._batcher.total_tokens, now)
        use = self._busy.read(self._batcher.times.busy_s, now)
        if rate and use:
            self._capacity = rate / use
        queue_s = self._batcher.queued_tokens / self._capacity if self._capacity else 0.0
        return {"tokens_per_s": rate, "capacity_tokens_per_s": self._capacity, "queue_s": queue_s}
