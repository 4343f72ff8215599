"""How many lines of the log tell of requests that were refused: whoever is refused may send as many as they like."""

from __future__ import annotations

import time
from collections.abc import Callable

from cluster.auth.quota import Bucket

_PER_MINUTE = 600


class RefusedLines:
    """Bounds them for one front door; metrics count every request. Belongs to one event loop.

    Args:
        per_minute: most of them.
        clock: seconds, monotonic.
    """

    def __init__(self, per_minute: int = _PER_MINUTE, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._bucket = Bucket(per_minute, clock())
        self._num_left_out = 0

    def next(self) -> int | None:
        """Return how many were left out since the last one, if there is to be a line; None: leave it out, too."""
        now = self._clock()
        if self._bucket.wait_s(1, now):
            self._num_left_out += 1
            return None
        self._bucket.take(1, now)
        left_out, self._num_left_out = self._num_left_out, 0
        return left_out
