"""What a transport learns from its dispatches: how fast answers are, who failed, how often others stood in."""

from __future__ import annotations

from dataclasses import dataclass, field

from router.transport.answer_times import AnswerTimes, HedgeBudget
from router.transport.attempt import Attempt
from router.transport.ejection import Ejection
from router.transport.health import DispatchCounts, DispatchTimes


@dataclass(slots=True)
class Evidence:
    """What a transport learns from its dispatches. Belongs to one thread."""

    times: AnswerTimes = field(default_factory=AnswerTimes)
    budget: HedgeBudget = field(default_factory=HedgeBudget)
    ejection: Ejection = field(default_factory=Ejection)
    counts: DispatchCounts = field(default_factory=DispatchCounts)
    parts: DispatchTimes = field(default_factory=DispatchTimes)
    probes: dict[str, Attempt] = field(default_factory=dict)
    """By replica, the newest probe under way."""
