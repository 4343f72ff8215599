"""What an expert replica reports with every heartbeat: the difference between two looks at its counters."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from cluster.layer_load import LayerLoad
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
        self._layers = replica.held.config.moe_layers
        self._tokens_LE = np.zeros((len(self._layers), replica.held.config.num_experts), np.int64)
        self._times = replica.batcher.times

    def report(self) -> ReplicaReport:
        """Return what happened since the last call."""
        now, tokens_LE, times = self._clock(), self._count(), self._replica.batcher.times
        seconds = max(now - self._looked_at, 1e-3)
        dispatches = max(times.dispatches - self._times.dispatches, 1)
        rates_LE = (tokens_LE - self._tokens_LE) / seconds
        held = self._replica.held.expert_ids
        report = ReplicaReport(
            replica_id=self._replica.replica_id,
            group=self._group,
            host=self._host,
            held=frozenset(held),
            spare_bytes=self._spare_bytes(),
            tokens_per_s={
                int(expert): float(rates_LE[:, expert].sum()) for expert in np.flatnonzero(tokens_LE.any(axis=0))
            },
            queue_s=(times.queue_s - self._times.queue_s) / dispatches,
            compute_s=(times.compute_s - self._times.compute_s) / dispatches,
            layer_load=LayerLoad(
                layers=self._layers, experts=held, tokens_per_s_LE=rates_LE[:, list(held)].astype(np.float32)
            ),
        )
        self._looked_at, self._tokens_LE, self._times = now, tokens_LE, times
        return report

    def _count(self) -> npt.NDArray[np.int64]:
        """Return the tokens run so far, [layers, experts]."""
        tokens_LE = np.zeros_like(self._tokens_LE)
        for row_E, tokens in zip(tokens_LE, self._replica.tokens_by_layer.values(), strict=True):
            row_E[list(tokens)] = list(tokens.values())
        return tokens_LE
