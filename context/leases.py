"""Which routers' segments are still wanted: those with a stream, and for a while those whose stream broke."""

from __future__ import annotations

from collections import Counter


class Leases:
    """Counts streams and remembers when the last one ended. Not thread-safe.

    Args:
        lease_s: how long segments outlive their router's last stream; seconds.
    """

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._num_streams: Counter[str] = Counter()
        self._ends_at: dict[str, float] = {}

    def open(self, router_id: str) -> None:
        """Take note of a stream."""
        self._num_streams[router_id] += 1
        self._ends_at.pop(router_id, None)

    def close(self, router_id: str, now: float) -> None:
        """Take note of a stream's end."""
        self._num_streams[router_id] -= 1
        if self._num_streams[router_id] <= 0:
            del self._num_streams[router_id]
            self._ends_at[router_id] = now + self._lease_s

    def expire(self, now: float) -> list[str]:
        """Return the routers whose time is over, once."""
        over = [router_id for router_id, ends_at in self._ends_at.items() if ends_at <= now]
        for router_id in over:
            del self._ends_at[router_id]
        return over
