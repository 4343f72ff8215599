"""A run's result for people: tables in the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.bench.caveats import find_caveats
from cluster.bench.duration_text import format_duration
from cluster.bench.session import Result
from cluster.bench.settings import ClosedLoop, OpenLoop, Settings
from cluster.bench.summary import Summary, Throughput

LATENCY_NAMES = {
    "ttft_ms": "time to first token",
    "tpot_ms": "time per output token",
    "itl_ms": "inter-token latency",
    "gap_ms": "gap between messages",
    "e2e_ms": "end to end",
}
"""Fields of Latencies for people."""
STATISTICS = ("mean", "p50", "p90", "p95", "p99", "min", "max")
"""Fields of Distribution that tables show."""


def print_report(result: Result, summary: Summary, console: Console) -> None:
    """Print everything a terminal has room for."""
    console.print(describe_run(result))
    console.print(describe_outcome(summary))
    console.print(latency_table(summary))
    for name, value in throughput_lines(summary):
        console.print(f"{name:<18}{value}")
    for error in summary.errors:
        console.print(Text(f"{error.count} x {error.kind}: {error.example}", style="red"))
    for caveat in find_caveats(result, summary):
        console.print(Text(f"note: {caveat.text}", style="bold red" if caveat.is_severe else "yellow"))


def describe_run(result: Result) -> str:
    """Return target and load in one line."""
    return f"{result.facts.description}, model {result.facts.model}: {describe_load(result.settings)}"


def describe_load(settings: Settings) -> str:
    """Return the load in words."""
    arrival = settings.arrival
    lengths = f"{settings.prompts.input.text} tokens in, {settings.prompts.output.text} out"
    if settings.prompts.texts:
        lengths = f"{len(settings.prompts.texts)} texts in, {settings.prompts.output.text} tokens out"
    if settings.prompts.shared_prefix:
        lengths += f", first {settings.prompts.shared_prefix} shared"
    if isinstance(arrival, ClosedLoop):
        return f"closed loop of {arrival.concurrency}, {lengths}"
    if isinstance(arrival, OpenLoop):
        kind = "Poisson" if arrival.burstiness == 1 else f"gamma (burstiness {arrival.burstiness:g})"
        return f"{kind} arrivals, {arrival.rate_per_s:g}/s, {lengths}"
    return f"replay of {arrival.path.name}, times x {arrival.time_scale:g}"


def describe_outcome(summary: Summary) -> str:
    """Return how the requests ended, in one line."""
    counts = summary.requests
    parts = [f"{counts.ok} ok", f"{counts.failed} failed"]
    parts += [f"{counts.not_sent} not sent"] if counts.not_sent else []
    parts += [f"{counts.interrupted} interrupted"] if counts.interrupted else []
    return f"{counts.total} requests in {format_duration(summary.throughput.window_s)}: {', '.join(parts)}"


def latency_table(summary: Summary) -> Table:
    """Return a row per latency, in milliseconds."""
    table = Table(box=SIMPLE_HEAD, padding=0)
    table.add_column("milliseconds", no_wrap=True)
    rows = latency_rows(summary)
    for index, name in enumerate(STATISTICS):
        # A terminal too narrow shall break lines, not cut numbers.
        table.add_column(name, justify="right", min_width=max(7, *(len(cells[index]) for _, cells in rows)))
    for name, cells in rows:
        table.add_row(name, *cells)
    return table


def latency_rows(summary: Summary) -> list[tuple[str, list[str]]]:
    """Return (name, cells) of each latency; cells in the order of STATISTICS, "-" where nothing was measured."""
    found = {name: getattr(summary.latencies, field) for field, name in LATENCY_NAMES.items()}
    if summary.client.lateness_ms:
        found["sent late"] = summary.client.lateness_ms
    return [
        (name, [format_ms(getattr(each, statistic)) if each else "-" for statistic in STATISTICS])
        for name, each in found.items()
    ]


def throughput_lines(summary: Summary) -> list[tuple[str, str]]:
    """Return (name, value) of everything that is not a latency."""
    found, client = summary.throughput, summary.client
    lines = [
        ("output tokens/s", f"{found.output_tokens_per_s:,.1f}  ({found.output_tokens:,} tokens)"),
        ("prompt tokens/s", f"{found.prompt_tokens_per_s:,.1f}  ({found.prompt_tokens:,} tokens{_cached(found)})"),
        ("requests/s", f"{found.requests_per_s:.3g}"),
        ("in flight", f"mean {client.concurrency_mean:.1f}, peak {client.concurrency_peak}"),
    ]
    if goodput := summary.goodput:
        value = f"{goodput.fraction:.1%} of requests, {goodput.requests_per_s:.3g}/s"
        lines.append(("goodput", value))
    lag = f", event loop late by {client.loop_lag_ms.p99:.1f} ms (p99)" if client.loop_lag_ms else ""
    lines.append(("load generator", f"{client.cpu_cores:.2f} cores{lag}"))
    return lines


def _cached(found: Throughput) -> str:
    if found.cached_tokens is None:
        return ", cached: not told"
    share = found.cached_tokens / found.prompt_tokens if found.prompt_tokens else 0
    return f", {share:.1%} from cache"


def format_ms(value: float) -> str:
    """Write milliseconds: "0.12", "34.5", "6,789"."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"
