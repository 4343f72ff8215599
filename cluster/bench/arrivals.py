"""When requests are sent, if nobody waits for the server: times of a renewal process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def arrival_times(rate_per_s: float, burstiness: float, rng: np.random.Generator) -> Iterator[float]:
    """Yield ascending times in seconds, without end; the first is one gap after 0.

    Gaps are gamma distributed with shape `burstiness` and mean 1 / `rate_per_s`. 1 makes a Poisson process; below 1
    requests come in bunches (squared coefficient of variation 1 / burstiness), above 1 they come more evenly.

    Args:
        rate_per_s: mean requests per second; positive.
        burstiness: shape of the gaps' distribution; positive.
        rng: consumed one number per time.
    """
    now = 0.0
    while True:
        now += float(rng.gamma(burstiness, 1 / (rate_per_s * burstiness)))
        yield now
