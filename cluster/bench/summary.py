"""A run in numbers. docs/bench.md defines each of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cluster.bench.measurement import Measurement, Status
from cluster.bench.session import Result
from cluster.bench.slo import Slo
from cluster.bench.statistics import Distribution, describe


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestCounts:
    """Requests by how they ended."""

    total: int
    ok: int
    failed: int
    not_sent: int
    interrupted: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ErrorCount:
    """Failures of one kind."""

    kind: str
    count: int
    example: str
    """What was said with the first of them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Latencies:
    """Distributions over the requests that were answered whole, in milliseconds; None: no such value."""

    ttft_ms: Distribution | None
    tpot_ms: Distribution | None
    itl_ms: Distribution | None
    """One value per token after the first message."""
    gap_ms: Distribution | None
    """One value per message after the first."""
    e2e_ms: Distribution | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Throughput:
    """What came per second of the window, and in all."""

    window_s: float
    """From the first sending to the last end."""
    requests_per_s: float
    """Requests answered whole."""
    output_tokens_per_s: float
    prompt_tokens_per_s: float
    output_tokens: int
    prompt_tokens: int
    cached_tokens: int | None
    """Of the prompt tokens; None: the server does not tell."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Goodput:
    """Requests that kept the objectives."""

    good: int
    fraction: float
    """Of those that were due, failures and unsent ones included."""
    requests_per_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Client:
    """How the load generator itself fared."""

    lateness_ms: Distribution | None
    """Of sending, against the plan; None in a closed loop."""
    loop_lag_ms: Distribution | None
    """How late its event loop woke from short sleeps."""
    cpu_cores: float
    """CPU seconds per second it took."""
    concurrency_mean: float
    """Requests in flight, averaged over the window."""
    concurrency_peak: int
    """Most requests in flight."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Everything that is reported of a run as a whole."""

    requests: RequestCounts
    errors: tuple[ErrorCount, ...]
    latencies: Latencies
    throughput: Throughput
    goodput: Goodput | None
    client: Client


def summarise(result: Result) -> Summary:
    """Return the numbers of a run."""
    measurements = result.measurements
    sent = [each for each in measurements if each.status is not Status.NOT_SENT]
    window_s = max((each.end_s for each in sent), default=0.0) - min((each.sent_s for each in sent), default=0.0)
    return Summary(
        requests=_count_requests(measurements),
        errors=_count_errors(measurements),
        latencies=measure_latencies([each for each in sent if each.status is Status.OK]),
        throughput=_measure_throughput(sent, window_s),
        goodput=measure_goodput(measurements, result.settings.slo, window_s) if result.settings.slo else None,
        client=Client(
            lateness_ms=describe(_ms(each.lateness_s for each in measurements)),
            loop_lag_ms=describe(_ms(result.lags_s)),
            cpu_cores=result.cpu_cores,
            concurrency_mean=sum(each.e2e_s for each in sent) / window_s if window_s else 0.0,
            concurrency_peak=max((running for _, running in concurrency_steps(sent)), default=0),
        ),
    )


def measure_latencies(answered: Sequence[Measurement]) -> Latencies:
    """Return the latencies of requests that were answered whole."""
    token_s: list[float] = []
    token_counts: list[int] = []
    gaps_s: list[float] = []
    for each in answered:
        gaps = each.gaps_s()
        counts = list(each.message_tokens[1:]) if each.knows_tokens_per_message else [1] * len(gaps)
        gaps_s += gaps
        token_s += [gap / count for gap, count in zip(gaps, counts, strict=True)]
        token_counts += counts
    return Latencies(
        ttft_ms=describe(_ms(each.ttft_s for each in answered)),
        tpot_ms=describe(_ms(each.tpot_s for each in answered)),
        itl_ms=describe(_ms(token_s), token_counts),
        gap_ms=describe(_ms(gaps_s)),
        e2e_ms=describe(_ms(each.e2e_s for each in answered)),
    )


def measure_goodput(measurements: Sequence[Measurement], slo: Slo, window_s: float) -> Goodput:
    """Return how many requests kept the objectives; interrupted ones are left out, as nobody knows."""
    due = [each for each in measurements if each.status is not Status.INTERRUPTED]
    good = sum(slo.holds(each) for each in due)
    return Goodput(
        good=good,
        fraction=good / len(due) if due else 0.0,
        requests_per_s=good / window_s if window_s else 0.0,
    )


def concurrency_steps(sent: Sequence[Measurement]) -> list[tuple[float, int]]:
    """Return (seconds, requests in flight from then on), ascending; at one time, ends come before starts."""
    events = sorted([(each.sent_s, 1) for each in sent] + [(each.end_s, -1) for each in sent])
    running = 0
    steps = []
    for at_s, change in events:
        running += change
        steps.append((at_s, running))
    return steps


def num_output_tokens(measurement: Measurement) -> int:
    """Return the tokens that came of a request, whole or not."""
    return measurement.num_tokens if measurement.status is Status.OK else measurement.num_arrived_tokens


def _count_requests(measurements: Sequence[Measurement]) -> RequestCounts:
    by_status = Counter(each.status for each in measurements)
    return RequestCounts(
        total=len(measurements),
        ok=by_status[Status.OK],
        failed=by_status[Status.FAILED],
        not_sent=by_status[Status.NOT_SENT],
        interrupted=by_status[Status.INTERRUPTED],
    )


def _count_errors(measurements: Sequence[Measurement]) -> tuple[ErrorCount, ...]:
    errors = [each.error for each in measurements if each.error]
    examples = {error.kind: error.message for error in reversed(errors)}
    counts = Counter(error.kind for error in errors).most_common()
    return tuple(ErrorCount(kind=kind, count=count, example=examples[kind]) for kind, count in counts)


def _measure_throughput(sent: Sequence[Measurement], window_s: float) -> Throughput:
    per_s = 1 / window_s if window_s else 0.0
    started = [each for each in sent if each.message_s]
    output_tokens = sum(num_output_tokens(each) for each in started)
    prompt_tokens = sum(each.num_prompt_tokens for each in started)
    cached = [each.cached_tokens for each in started if each.cached_tokens is not None]
    return Throughput(
        window_s=window_s,
        requests_per_s=sum(each.status is Status.OK for each in sent) * per_s,
        output_tokens_per_s=output_tokens * per_s,
        prompt_tokens_per_s=prompt_tokens * per_s,
        output_tokens=output_tokens,
        prompt_tokens=prompt_tokens,
        cached_tokens=sum(cached) if cached else None,
    )


def _ms(seconds: Iterable[float | None]) -> list[float]:
    return [each * 1000 for each in seconds if each is not None]
