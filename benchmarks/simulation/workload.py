"""What is asked of the cluster: requests per time step, from a trace or made up, and how popular each expert is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.bench.traces import TraceRow

DAY_S = 86_400.0
_BURST_S = 180.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Requests by time step. Requests of a step are alike: as long as their mean."""

    step_s: float
    """Seconds of a step."""
    requests: NDArray[np.float64]
    """[steps] requests that come."""
    prompt_tokens: NDArray[np.float64]
    """[steps] mean length of their prompts."""
    output_tokens: NDArray[np.float64]
    """[steps] mean length of their answers."""
    popularity: NDArray[np.float64]
    """[periods, experts] part of all tokens that each expert gets; rows sum to 1."""
    period_s: float
    """Seconds that a row of `popularity` holds."""

    @property
    def num_steps(self) -> int:
        """Count the steps."""
        return len(self.requests)

    def popularity_at(self, now: float) -> NDArray[np.float64]:
        """Return [experts] parts of all tokens."""
        return self.popularity[min(int(now / self.period_s), len(self.popularity) - 1)]

    def first(self, seconds: float) -> Workload:
        """Return the beginning."""
        steps = max(1, int(seconds / self.step_s))
        return Workload(
            step_s=self.step_s,
            requests=self.requests[:steps],
            prompt_tokens=self.prompt_tokens[:steps],
            output_tokens=self.output_tokens[:steps],
            popularity=self.popularity,
            period_s=self.period_s,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Day:
    """A made-up day: a wave with bursts on it."""

    peak_per_s: float
    """Requests per second at the highest point of the wave; positive."""
    trough: float = 0.15
    """The lowest point, as a part of the peak; in [0, 1]."""
    bursts: int = 6
    """Bursts a day of three minutes."""
    burst_height: float = 1.3
    """What a burst multiplies the rate with; at least 1."""
    prompt_tokens: float = 1155.0
    """Mean length of prompts."""
    output_tokens: float = 211.0
    """Mean length of answers."""
    hours: float = 24.0
    """How long it goes on; positive."""


def made_up(day: Day, *, step_s: float, popularity: NDArray[np.float64], period_s: float, seed: int) -> Workload:
    """Return a day's requests: rate(t) = peak (trough + (1 - trough) ((1 - cos 2 pi t) / 2)^1.5), Poisson arrivals.

    It begins and ends at the lowest point.
    """
    chance = np.random.default_rng(seed)
    steps = max(1, round(day.hours * 3600 / step_s))
    at_s = (np.arange(steps) + 0.5) * step_s
    wave = ((1 - np.cos(2 * math.pi * at_s / DAY_S)) / 2) ** 1.5
    rate = day.peak_per_s * (day.trough + (1 - day.trough) * wave)
    for begin in chance.uniform(0, steps * step_s, round(day.bursts * day.hours / 24)):
        rate[(at_s >= begin) & (at_s < begin + _BURST_S)] *= day.burst_height
    return Workload(
        step_s=step_s,
        requests=chance.poisson(rate * step_s).astype(np.float64),
        prompt_tokens=np.full(steps, day.prompt_tokens),
        output_tokens=np.full(steps, day.output_tokens),
        popularity=popularity,
        period_s=period_s,
    )


def recorded(
    rows: Sequence[TraceRow], *, scale: float, step_s: float, popularity: NDArray[np.float64], period_s: float
) -> Workload:
    """Return a trace's requests, each counted `scale` times."""
    steps = int(max(row.at_s for row in rows) / step_s) + 1
    index = np.array([int(row.at_s / step_s) for row in rows])
    count = np.bincount(index, minlength=steps).astype(np.float64)
    prompts = np.bincount(index, weights=[float(row.input_tokens) for row in rows], minlength=steps)
    outputs = np.bincount(index, weights=[float(row.output_tokens) for row in rows], minlength=steps)
    return Workload(
        step_s=step_s,
        requests=count * scale,
        prompt_tokens=prompts / np.maximum(count, 1),
        output_tokens=outputs / np.maximum(count, 1),
        popularity=popularity,
        period_s=period_s,
    )


def zipf(num_experts: int, exponent: float, *, periods: int, drift: float, seed: int) -> NDArray[np.float64]:
    """Return [periods, experts] popularity: the r-th expert gets a part like 1 / r^exponent, and ranks drift.

    Args:
        num_experts: of a layer.
        exponent: 0 is even.
        periods: rows.
        drift: part of the experts that change ranks from one row to the next; in [0, 1].
        seed: of the ranks.
    """
    chance = np.random.default_rng(seed + 1)
    weights = 1 / np.arange(1, num_experts + 1) ** exponent
    weights /= weights.sum()
    ranks = chance.permutation(num_experts)
    rows = []
    for _ in range(periods):
        rows.append(weights[ranks])
        moved = chance.choice(num_experts, round(drift * num_experts), replace=False)
        ranks[moved] = ranks[chance.permutation(moved)]
    return np.array(rows)
