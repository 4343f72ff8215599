"""What a reader must know before trusting a run's numbers."""

from __future__ import annotations

from dataclasses import dataclass

from cluster.bench.duration_text import format_duration
from cluster.bench.measurement import Status
from cluster.bench.session import Result
from cluster.bench.summary import Summary

LATE_MS = 5.0
"""Sending this much late, or by a tenth of the median time to the first token, is too late."""
LAG_MS = 10.0
"""An event loop that wakes this late measures itself."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caveat:
    """One sentence for the reader."""

    text: str
    is_severe: bool
    """The numbers are not what was asked for."""


def find_caveats(result: Result, summary: Summary) -> list[Caveat]:
    """Return what there is to say, the severe ones first."""
    found = [*_of_the_run(result), *_of_the_client(summary, result), *_of_the_answers(result)]
    return sorted(found, key=lambda caveat: not caveat.is_severe)


def _of_the_run(result: Result) -> list[Caveat]:
    found = []
    if result.is_interrupted:
        found.append(Caveat(text="interrupted: the load was not sent to its end", is_severe=True))
    if result.gave_up:
        waited = format_duration(result.settings.give_up_s)
        found.append(Caveat(text=f"nobody to connect to for {waited}: the run ended early", is_severe=True))
    if result.num_clipped:
        text = f"{result.num_clipped} requests were cut to the context: lengths are not those asked for"
        found.append(Caveat(text=text, is_severe=False))
    return found


def _of_the_client(summary: Summary, result: Result) -> list[Caveat]:
    found = []
    client, ttft = summary.client, summary.latencies.ttft_ms
    if summary.requests.not_sent:
        text = (
            f"{summary.requests.not_sent} requests were NOT SENT: --max-in-flight {result.settings.max_in_flight} were "
            "waiting already, the server is far behind the load"
        )
        found.append(Caveat(text=text, is_severe=True))
    allowed_ms = max(LATE_MS, ttft.p50 / 10) if ttft else LATE_MS
    if client.lateness_ms and client.lateness_ms.p99 > allowed_ms:
        text = (
            f"the LOAD GENERATOR COULD NOT KEEP UP: it sent requests up to {client.lateness_ms.max:.1f} ms late (p99 "
            f"{client.lateness_ms.p99:.1f} ms); give it a core of its own, or another machine"
        )
        found.append(Caveat(text=text, is_severe=True))
    if client.loop_lag_ms and client.loop_lag_ms.p99 > LAG_MS:
        text = (
            f"the LOAD GENERATOR WAS SLOW to read: its event loop woke up to {client.loop_lag_ms.max:.1f} ms late (p99 "
            f"{client.loop_lag_ms.p99:.1f} ms), which is in every time above; give it a core of its own"
        )
        found.append(Caveat(text=text, is_severe=True))
    return found


def _of_the_answers(result: Result) -> list[Caveat]:
    answered = [each for each in result.measurements if each.status is Status.OK]
    found = []
    if short := sum(each.num_tokens < each.max_tokens for each in answered):
        text = f"{short} of {len(answered)} answers are shorter than was asked for"
        found.append(Caveat(text=text, is_severe=result.settings.endpoint.ignores_eos))
    if unknown := sum(not each.knows_tokens_per_message for each in answered):
        text = (
            f"{unknown} of {len(answered)} answers do not tell the tokens of each message: ITL takes each for one token"
        )
        found.append(Caveat(text=text, is_severe=False))
    return found
