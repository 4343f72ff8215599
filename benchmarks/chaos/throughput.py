"""Tokens per second over time, and the longest silences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .record import StreamRecord

BIN_S = 0.25


@dataclass(frozen=True, kw_only=True, slots=True)
class Throughput:
    """Tokens per second in bins of BIN_S seconds."""

    began_s: float
    """When the first bin begins, on the monotonic clock."""
    tokens_per_s: tuple[float, ...]
    """One per bin."""


def measure_throughput(records: Sequence[StreamRecord], began_s: float, ended_s: float) -> Throughput:
    """Return the tokens that all streams brought between two times, bin by bin."""
    times = [second for record in records for second, _ in record.arrivals]
    tokens = [count for record in records for _, count in record.arrivals]
    num_bins = max(int((ended_s - began_s) / BIN_S), 1)
    edges = began_s + BIN_S * np.arange(num_bins + 1)
    counts = np.histogram(times, edges, weights=tokens)[0] / BIN_S
    return Throughput(began_s=began_s, tokens_per_s=tuple(float(each) for each in counts))


def mean_rate(records: Sequence[StreamRecord], spans: Sequence[tuple[float, float]]) -> float | None:
    """Return the tokens per second over some spans of time; None if they last no time."""
    seconds = sum(stop - start for start, stop in spans)
    if seconds <= 0:
        return None
    arrivals = [arrival for record in records for arrival in record.arrivals]
    tokens = sum(count for second, count in arrivals if any(start <= second < stop for start, stop in spans))
    return tokens / seconds


def longest_gap(records: Sequence[StreamRecord]) -> float:
    """Return the longest time between two messages with tokens of one stream, in seconds."""
    return max((seconds for record in records for _, seconds in record.gaps()), default=0.0)


def longest_first_token(records: Sequence[StreamRecord]) -> float:
    """Return the longest time from sending a request to its first token, in seconds."""
    return max((record.first_token_s for record in records if record.first_token_s is not None), default=0.0)


def gap_p99(records: Sequence[StreamRecord]) -> float:
    """Return the 99th percentile of the time between two messages with tokens of one stream, in seconds."""
    gaps = [seconds for record in records for _, seconds in record.gaps()]
    return float(np.percentile(gaps, 99)) if gaps else 0.0
