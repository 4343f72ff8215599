"""A set of numbers in a few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, kw_only=True, slots=True)
class Distribution:
    """What is told of a set of numbers, in their own unit."""

    count: int
    mean: float
    min: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


def describe(values: Sequence[float], repeats: Sequence[int] | None = None) -> Distribution | None:
    """Return the distribution of values, None of no values.

    Percentiles interpolate linearly between the two nearest ranks (numpy's default).

    Args:
        values: [n] any order.
        repeats: [n] how many times each value counts; None: once.
    """
    numbers = np.asarray(values, dtype=np.float64)
    if repeats is not None:
        numbers = np.repeat(numbers, repeats)
    if not numbers.size:
        return None
    p50, p90, p95, p99 = (float(each) for each in np.percentile(numbers, PERCENTILES))
    return Distribution(
        count=int(numbers.size),
        mean=float(numbers.mean()),
        min=float(numbers.min()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        max=float(numbers.max()),
    )
