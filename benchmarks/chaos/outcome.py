"""What a run found, as plain data for the report and the results file."""

from __future__ import annotations

from dataclasses import dataclass, field

from .comparison import Differences


@dataclass(kw_only=True, slots=True)
class FaultEvent:
    """A fault that was injected. Times are seconds since the load began."""

    label: str
    """What was done to whom."""
    injected_s: float
    """When."""
    lifted_s: float
    """When it was lifted; for a kill, when it had been done."""
    recovered_s: float | None = None
    """When everything was back that was there before; None: not in time, or the next fault came first."""
    is_overtaken: bool = False
    """True if nobody waited for that: the next fault of a storm came first."""
    problem: str = ""
    """What was missing when waiting was given up."""
    streams_in_flight: int = 0
    """Streams under way when it was injected."""

    @property
    def redundancy_s(self) -> float | None:
        """Return the seconds from the fault to full redundancy."""
        return None if self.recovered_s is None else self.recovered_s - self.injected_s


@dataclass(kw_only=True, slots=True)
class Outcome:
    """One scenario's run."""

    scenario: str
    """Its name."""
    settings: dict[str, str]
    """Of Herd and of the load."""
    faults: list[FaultEvent] = field(default_factory=list)
    """In the order of injection."""
    differences: Differences = field(default_factory=Differences)
    """Of every stream from its fault-free run; if the target was a front door, of all others."""
    through_target: Differences | None = None
    """Of the streams that were in flight through a front door when it became the target; None: none was one."""
    tokens: int = 0
    """Tokens that came."""
    gap_p99_s: float = 0.0
    """99th percentile of the time between two messages of a stream before the first fault."""
    longest_gap_s: float = 0.0
    """Longest time between two messages of a stream."""
    longest_first_token_s: float = 0.0
    """Longest time to a first token."""
    tokens_per_s: dict[str, float | None] = field(default_factory=dict)
    """Before the first fault, during (until everything was back) and after."""
    throughput: list[float] = field(default_factory=list)
    """Tokens per second, in bins from the beginning of the load."""
    bin_s: float = 0.0
    """Seconds of a bin."""
    descriptors: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Open ones of each process that lived through it all, before the load and at its end."""
    leaks: list[str] = field(default_factory=list)
    """What was left when the application had ended, and descriptors that it gained while it ran."""

    @property
    def holds(self) -> bool:
        """Tell whether all was well: no stream harmed but by the death of its own front door, all back, nothing left.

        Not even that may double or change a token.
        """
        own = self.through_target
        is_back = all(fault.is_overtaken or fault.recovered_s is not None for fault in self.faults)
        return self.differences.is_clean and (own is None or own.only_ended_early) and is_back and not self.leaks
