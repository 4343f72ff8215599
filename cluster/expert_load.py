"""What an expert replica reports with every heartbeat: the difference between two looks at its counters."""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster.placement_load import ReplicaReport
from experts.replica import Replica


class ExpertLoadMeter:
    """Turns a replica's counters into rates. For one thread.

    Args:
        replica: whose.
        group: the expert group it serves.
        host: name of its machine.
        spare_bytes: tells how many bytes of weights it may still add.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        replica: Replica,
        *,
        group: str,
        host: str,
        spare_bytes: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._replica = replica
        self._group = group
        self._host = host
        self._spare_bytes = spare_bytes
        self._clock = clock
        self._looked_at = clock()
        self._tokens: dict[int, int] = {}
        self._times = replica.batcher.times

    def report(self) -> ReplicaReport:
        """Return what happened since the last call."""
        now, tokens, times = self._clock(), self._replica.tokens_by_expert, self._replica.batcher.times
        seconds = max(now - self._looked_at, 1e-3)
        dispatches = max(times.dispatches - self._times.dispatches, 1)
        report = ReplicaReport(
            replica_id=self._replica.replica_id,
            group=self._group,
            host=self._host,
            held=frozenset(self._replica.held.expert_ids),
            spare_bytes=self._spare_bytes(),
            tokens_per_s={expert: (count - self._tokens.get(expert, 0)) / seconds for expert, count in tokens.items()},
            queue_s=(times.queue_s - self._times.queue_s) / dispatches,
            compute_s=(times.compute_s - self._times.compute_s) / dispatches,
        )
        self._looked_at, self._tokens, self._times = now, tokens, times
        return report
