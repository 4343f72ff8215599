"""Service level objectives: what a request must keep to count as good."""

from __future__ import annotations

from dataclasses import dataclass, fields

from cluster.bench.duration_text import format_duration, parse_duration
from cluster.bench.measurement import Measurement, Status
from protos.errors import InvalidRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Slo:
    """Bounds in seconds, themselves included; None: no bound."""

    ttft: float | None = None
    """Time to the first token."""
    tpot: float | None = None
    """Time per output token after the first; a request of one token keeps it."""
    gap: float | None = None
    """Longest wait between two messages."""
    e2e: float | None = None
    """Time to the end."""

    def holds(self, measurement: Measurement) -> bool:
        """Tell whether a request was answered whole and within every bound."""
        if measurement.status is not Status.OK:
            return False
        found = {
            "ttft": measurement.ttft_s,
            "tpot": measurement.tpot_s,
            "gap": max(measurement.gaps_s(), default=None),
            "e2e": measurement.e2e_s,
        }
        return all(
            bound is None or value is None or value <= bound
            for name, value in found.items()
            for bound in [getattr(self, name)]
        )

    @property
    def text(self) -> str:
        """For people: "ttft <= 500 ms, tpot <= 50 ms"."""
        bounds = {each.name: getattr(self, each.name) for each in fields(self)}
        return ", ".join(f"{name} <= {format_duration(bound)}" for name, bound in bounds.items() if bound is not None)


def parse_slo(text: str) -> Slo:
    """Return what "ttft=500ms,tpot=50ms,e2e=10s" says.

    Raises:
        InvalidRequest: a name is unknown or there twice, or its bound is no duration.
    """
    names = [each.name for each in fields(Slo)]
    bounds: dict[str, float] = {}
    for part in text.split(","):
        name, equals, bound = (each.strip() for each in part.partition("="))
        if not equals or name not in names:
            raise InvalidRequest(f"--slo: expected NAME=DURATION with a name of {', '.join(names)}, found {part!r}")
        if name in bounds:
            raise InvalidRequest(f"--slo: expected {name} once, found it twice: leave one out")
        bounds[name] = parse_duration(bound, f"--slo {name}")
    return Slo(**bounds)
