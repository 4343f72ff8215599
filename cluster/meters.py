"""Rates of counters that only grow, and how long experts compute: what replicas report for scaling."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from experts.replica import HeldExperts
from models.config import ModelConfig


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


class MeteredExperts:
    """Resident experts that count what they compute and how long it takes. Otherwise what it is given.

    Args:
        held: the experts.
    """

    def __init__(self, held: HeldExperts) -> None:
        self._held = held
        self._lock = threading.Lock()
        self._tokens, self._busy_s = 0, 0.0

    @property
    def computed(self) -> tuple[int, float]:
        """Return the tokens computed so far, all layers together, and the seconds that took."""
        with self._lock:
            return self._tokens, self._busy_s

    @property
    def config(self) -> ModelConfig:
        """The model they belong to."""
        return self._held.config

    @property
    def fingerprint(self) -> str:
        """Which model exactly."""
        return self._held.fingerprint

    @property
    def expert_ids(self) -> tuple[int, ...]:
        """Logical experts held in every MoE layer, ascending."""
        return self._held.expert_ids

    @property
    def dtype(self) -> torch.dtype:
        """Of tokens and outputs."""
        return self._held.dtype

    @property
    def weight_bytes(self) -> int:
        """Bytes in memory."""
        return self._held.weight_bytes

    @property
    def loaded_bytes(self) -> int:
        """Bytes read from the checkpoint."""
        return self._held.loaded_bytes

    def run(self, layer: int, hidden_ND: Tensor, expert_ids: Sequence[int], token_counts: Sequence[int]) -> Tensor:
        """Return outputs [N, D] of tokens sorted by expert, and count."""
        began = time.perf_counter()
        outputs_ND = self._held.run(layer, hidden_ND, expert_ids, token_counts)
        took_s = time.perf_counter() - began
        with self._lock:
            self._tokens += sum(token_counts)
            self._busy_s += took_s
        return outputs_ND


class ExpertMeter:
    """What an expert replica reports.

    Args:
        experts: what it computes with.
    """

    def __init__(self, experts: MeteredExperts) -> None:
        self._experts = experts
        self._tokens, self._busy = RateMeter(), RateMeter()
        self._capacity = 0.0

    def stats(self, queued_tokens: int, now: float) -> dict[str, float]:
        """Return tokens per second, tokens per second of computing, and seconds of computing that wait.

        Args:
            queued_tokens: accepted and not computed.
            now: seconds on a monotonic clock.
        """
        tokens, busy_s = self._experts.computed
        rate, use = self._tokens.read(tokens, now), self._busy.read(busy_s, now)
        if rate and use:
            self._capacity = rate / use
        queue_s = queued_tokens / self._capacity if self._capacity else 0.0
        return {"tokens_per_s": rate, "capacity_tokens_per_s": self._capacity, "queue_s": queue_s}
