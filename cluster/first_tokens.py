"""How long clients of standard length have waited for their first tokens lately."""

from __future__ import annotations

from cluster.front_door_metrics import FrontDoorMetrics

_NAME = "herd_time_to_first_token_seconds"
_LABELS = {"class": "standard"}
"""Long requests wait for their prompts, and more routers would not change that."""


class FirstTokenMeter:
    """Reads a front door's histogram.

    Args:
        metrics: of the front door.
    """

    def __init__(self, metrics: FrontDoorMetrics) -> None:
        self._metrics = metrics
        self._last = (0.0, 0.0)

    def mean_s(self) -> float:
        """Return the mean time to the first token since the last call, in seconds; 0: there was none."""
        registry = self._metrics.registry
        total_s = registry.get_sample_value(f"{_NAME}_sum", _LABELS)
        count = registry.get_sample_value(f"{_NAME}_count", _LABELS)
        now = (total_s or 0.0, count or 0.0)
        (last_s, last), self._last = self._last, now
        return (now[0] - last_s) / (now[1] - last) if now[1] > last else 0.0
