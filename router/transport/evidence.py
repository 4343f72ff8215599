"""What a transport learns from its dispatches: how fast answers are, who failed, how often others stood in."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.transport.answer_times import AnswerTimes, HedgeBudget
from router.transport.attempt import Attempt
from router.transport.ejection import Ejection


@dataclass(kw_only=True, slots=True)
class DispatchCounts:
    """What became of dispatches since the start."""

    shares: int = 0
    """Sent to a replica for the first time."""
    hedges: int = 0
    """Sent to another holder as well, for the first was late."""
    resends: int = 0
    """Sent to another holder instead, for the first failed."""
    probes: int = 0
    """Copied to an ejected replica."""


@dataclass(slots=True)
class Evidence:
    """What a transport learns from its dispatches. Belongs to one thread."""

    times: AnswerTimes = field(default_factory=AnswerTimes)
    budget: HedgeBudget = field(default_factory=HedgeBudget)
    ejection: Ejection = field(default_factory=Ejection)
    counts: DispatchCounts = field(default_factory=DispatchCounts)
    probes: dict[str, Attempt] = field(default_factory=dict)
    """By replica, the newest probe under way."""
