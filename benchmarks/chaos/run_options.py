"""How a scenario is run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Say = Callable[[str], None]
"""Tells people what happens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunOptions:
    """How a scenario is run."""

    streams: int = 16
    """At once."""
    requests: int = 48
    """Different ones."""
    max_tokens: int = 96
    """Of the longest."""
    period_s: float | None = None
    """Seconds from a stream's beginning to that of the next; None: as soon as it ends."""
    repeat: int = 1
    """Faults one after the other; a storm is ruled by `seconds`."""
    seconds: float = 300.0
    """How long a storm rages, and the load of a run without faults lasts."""
    warm_up_s: float = 5.0
    """Load before the first fault."""
    calm_s: float = 5.0
    """Load after everything is back."""
    recover_s: float = 120.0
    """Most seconds that everything may take to come back."""
    seed: int = 1
    """Chooses targets and times."""
    hold_s: float | None = None
    """Seconds from injecting to lifting; None: as the scenario says."""
    settings: tuple[str, ...] = ()
    """Further ones for `herd serve --set`."""

    @property
    def ramp_s(self) -> float:
        """Return the seconds until every worker has begun."""
        return self.period_s or 0.0

    def describe(self) -> dict[str, str]:
        """Return what of it belongs to a result."""
        return {
            "streams": str(self.streams),
            "requests": f"{self.requests}, of {self.max_tokens} tokens at most",
            "period": "none: the next stream begins as one ends" if self.period_s is None else f"{self.period_s:g} s",
            "hold": "as the scenario says" if self.hold_s is None else f"{self.hold_s:g} s",
        }
