"""Time that passes when told to."""

from __future__ import annotations


class Clock:
    """Stands in for `time.monotonic`."""

    def __init__(self) -> None:
        self.now = 100.0
        """Seconds."""

    def __call__(self) -> float:
        return self.now
