"""What a router tells of its dispatches. Plain data: front doors read it, which have no tensors and import no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from protos.segment import Lane


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


class LaneInUse(NamedTuple):
    """How a stream's tensors travel."""

    lane: Lane
    reason: str
    """Why no better way; empty where there is none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TransportHealth:
    """What became of a transport's dispatches since its start."""

    counts: DispatchCounts
    """By what happened to them."""
    ejections: int
    """Times a replica was passed over from then on."""
    ejected: tuple[str, ...]
    """Replicas that are passed over now."""
    times: DispatchTimes = field(default_factory=DispatchTimes)
    """How long they took."""
    lanes: Mapping[str, LaneInUse] = field(default_factory=dict)
    """How tensors travel to each replica that is connected, and why not in a better way."""
