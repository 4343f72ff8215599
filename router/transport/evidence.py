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


@dataclass(kw_only=True, slots=True)
class DispatchTimes:
    """How long answers that were used took since the start, summed, and what of that was whose."""

    answers: int = 0
    """To shares, or parts of them."""
    total_s: float = 0.0
    """From sending to receiving."""
    queue_s: float = 0.0
    """What the replicas say they waited before they computed."""
    compute_s: float = 0.0
    """What they say they computed."""

    def observe(self, total_s: float, queue_us: int, compute_us: int) -> None:
        """Take note of an answer."""
        self.answers += 1
        self.total_s += total_s
        self.queue_s += queue_us * 1e-6
        self.compute_s += compute_us * 1e-6

    def parts(self) -> dict[str, float]:
        """Return the seconds of each part. Network: all else, writing, reading and waiting for a thread included."""
        rest_s = max(self.total_s - self.queue_s - self.compute_s, 0.0)
        return {"queue": self.queue_s, "compute": self.compute_s, "network": rest_s}


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
