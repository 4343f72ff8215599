"""How fast a tier gives pages back, as measured."""

from __future__ import annotations

_REMEMBER = 0.7
"""Share of a past estimate in the next one."""
_RETRY = 1.05
"""How much better a tier is thought of each time it is not used for being slow: else one slow moment, or a prompt rate
that was measured while the machine was idle, would decide for ever."""


class Rate:
    """Bytes per second, unknown at first."""

    def __init__(self) -> None:
        self._bytes_per_s = 0.0

    def seconds(self, num_bytes: int) -> float:
        """Return how long so many bytes will take; 0 as long as that was never measured, so that it is tried."""
        return num_bytes / self._bytes_per_s if self._bytes_per_s else 0.0

    def observe(self, num_bytes: int, seconds: float) -> None:
        """Learn from bytes that were moved."""
        found = num_bytes / max(seconds, 1e-9)
        self._bytes_per_s = _REMEMBER * self._bytes_per_s + (1 - _REMEMBER) * found if self._bytes_per_s else found

    def refuse(self) -> None:
        """Note that the tier was not used because computing seemed quicker."""
        self._bytes_per_s *= _RETRY
