"""From what was recorded to what is reported."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from .comparison import compare
from .outcome import FaultEvent, Outcome
from .record import StreamRecord
from .throughput import BIN_S, gap_p99, longest_first_token, longest_gap, mean_rate, measure_throughput


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """A load from its beginning to when it was told to stop. Times are seconds of the monotonic clock."""

    records: Sequence[StreamRecord]
    """Every stream, those that ended later too."""
    reference: Sequence[StreamRecord]
    """Each request's stream without faults, in the list's order."""
    began_s: float
    """When the load began."""
    ended_s: float
    """When it was told to stop."""
    ramp_s: float = 1.0
    """Seconds until it is what it stays: the first second has more prompts in it than any later one."""


def measure(
    scenario: str,
    settings: dict[str, str],
    *,
    load: Recorded,
    faults: list[FaultEvent],
    own: Collection[int] | None = None,
) -> Outcome:
    """Return what a run found.

    Args:
        scenario: its name.
        settings: to be told with the result.
        load: what was recorded.
        faults: in the order of injection; their times count from the load's beginning.
        own: streams that ran through a front door that was a target, by `id`; None: none was one.
    """
    records, own_ids = load.records, own or ()
    first_s = load.began_s + faults[0].injected_s if faults else load.ended_s
    quiet = [record for record in records if record.ended_s is not None and record.ended_s < first_s]
    rates = {name: mean_rate(records, spans) for name, spans in _spans(faults, load).items()}
    return Outcome(
        scenario=scenario,
        settings=settings,
        faults=faults,
        differences=compare([record for record in records if id(record) not in own_ids], load.reference),
        through_target=(
            None if own is None else compare([record for record in records if id(record) in own_ids], load.reference)
        ),
        tokens=sum(len(record.token_ids) for record in records),
        gap_p99_s=gap_p99([*load.reference, *quiet]),
        longest_gap_s=longest_gap(records),
        longest_first_token_s=longest_first_token(records),
        tokens_per_s=rates,
        throughput=list(measure_throughput(records, load.began_s, load.ended_s).tokens_per_s),
        bin_s=BIN_S,
    )


def _spans(faults: list[FaultEvent], load: Recorded) -> dict[str, list[tuple[float, float]]]:
    """Return the spans of time before the first fault, from each fault until all was back, and between these."""
    began_s, ended_s = load.began_s, load.ended_s
    if not faults:
        return {"before": [(began_s + load.ramp_s, ended_s)]}
    during: list[tuple[float, float]] = []
    after: list[tuple[float, float]] = []
    for fault, following in zip(faults, [*faults[1:], None], strict=True):
        next_s = ended_s if following is None else began_s + following.injected_s
        back_s = min(next_s, ended_s if fault.recovered_s is None else began_s + fault.recovered_s)
        during.append((began_s + fault.injected_s, back_s))
        after.append((back_s, next_s))
    return {"before": [(began_s + load.ramp_s, began_s + faults[0].injected_s)], "during": during, "after": after}
