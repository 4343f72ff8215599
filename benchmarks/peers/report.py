"""Medians, spreads and paired ratios of a run, as a page and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from .engines import Variant
from .workloads import Measure, Workload


@dataclass(frozen=True, kw_only=True, slots=True)
class Goal:
    """What Herd is meant to reach against a peer."""

    workload: str
    ours: str
    """A family."""
    theirs: str
    """A family."""
    at_least: float
    is_quantized: bool = False
    """True: between the families' 8-bit variants; False: between the others."""


GOALS = (
    Goal(workload="decode-32", ours="herd-split", theirs="vllm", at_least=2.0),
    Goal(workload="decode-8", ours="herd-split", theirs="vllm", at_least=1.5),
    Goal(workload="decode-1", ours="herd-split", theirs="vllm", at_least=1.2),
    Goal(workload="decode-1", ours="herd-local", theirs="vllm", at_least=1.5),
    *(
        Goal(workload=f"prompt-1x{length}", ours="herd-local", theirs="vllm", at_least=1.5)
        for length in (8192, 32_768, 65_536)
    ),
    Goal(workload="prompt-8x512", ours="herd-split", theirs="vllm", at_least=1.5),
    Goal(workload="decode-1", ours="herd-split", theirs="llama", at_least=1.0, is_quantized=True),
    Goal(workload="decode-32", ours="herd-split", theirs="herd-local", at_least=0.95),
)


@dataclass(slots=True)
class Run:
    """Everything that was measured."""

    variants: dict[str, Variant]
    workloads: Sequence[Workload]
    samples: dict[tuple[str, str], dict[int, Measure]] = field(default_factory=dict)
    """By variant and workload, by round; round 0 warms up and is not here."""
    ready: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each worker said when it was ready, by variant."""
    peak_bytes: dict[str, dict[str, int]] = field(default_factory=dict)
    """Most memory of each process, by variant."""
    agreement: dict[str, str] = field(default_factory=dict)
    """How many greedy tokens are the reference's, by variant."""
    idle_share: dict[str, float] = field(default_factory=dict)
    """Processors kept busy while idle, by variant."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why a variant has no figures."""

    def add(self, variant: str, workload: str, number: int, found: Measure) -> None:
        """Note a measure of a round."""
        self.samples.setdefault((variant, workload), {})[number] = found

    def note_peak(self, variant: str, peak_bytes: dict[str, int]) -> None:
        """Note the memory of a variant's processes."""
        known = self.peak_bytes.setdefault(variant, {})
        for process, size in peak_bytes.items():
            known[process] = max(size, known.get(process, 0))

    def rates(self, variant: str, workload: str) -> dict[int, float]:
        """Return the rates of a variant by round."""
        return {number: found.rate for number, found in self.samples.get((variant, workload), {}).items()}

    def best(self, family: str, workload: str, *, is_quantized: bool = False) -> str | None:
        """Return a family's variant with the highest median; None: it was not measured."""
        medians = {
            name: statistics.median(self.rates(name, workload).values())
            for name, variant in self.variants.items()
            if variant.family == family and variant.is_quantized == is_quantized and self.rates(name, workload)
        }
        return max(medians, key=lambda name: medians[name], default=None)

    def ratios(self, ours: str, theirs: str, workload: str) -> list[float]:
        """Return the ratio of two variants in each round that measured both."""
        mine, others = self.rates(ours, workload), self.rates(theirs, workload)
        return [mine[number] / others[number] for number in sorted(mine.keys() & others.keys())]


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Return "median (least to most)"."""
    found = sorted(values)
    if not found:
        return "-"
    return f"{statistics.median(found):.{digits}f} ({found[0]:.{digits}f} to {found[-1]:.{digits}f})"


def as_markdown(run: Run, preamble: str, environment: dict[str, str]) -> str:
    """Return the page."""
    parts = [preamble, "| | |\n|---|---|\n" + "\n".join(f"| {key} | {value} |" for key, value in environment.items())]
    parts += ["## Tokens per second", _rates_table(run), "## Ratios", _ratios_table(run)]
    parts += ["## Goals", _goals_table(run)]
    if any(not workload.is_prefill for workload in run.workloads):
        parts += ["## Whole answers", _totals_table(run)]
    if fits := _fits_table(run):
        parts += ["## Seconds by length", fits]
    parts += ["## Engines", _engines_table(run)]
    if run.failures:
        parts += ["## Without figures", "\n".join(f"- {name}: {why}" for name, why in run.failures.items())]
    return "\n\n".join(parts) + "\n"


def as_json(run: Run, environment: dict[str, str]) -> dict[str, Any]:
    """Return everything, for other programs."""
    fields = Measure.__dataclass_fields__
    return {
        "environment": environment,
        "workloads": [{name: getattr(each, name) for name in each.__dataclass_fields__} for each in run.workloads],
        "engines": {
            name: {
                "command_options": variant.options,
                "variables": variant.variables,
                "ready": run.ready.get(name),
                "peak_rss_bytes": run.peak_bytes.get(name),
                "agreement": run.agreement.get(name),
                "idle_processors": run.idle_share.get(name),
                "failure": run.failures.get(name),
                "rounds": {
                    workload.name: {
                        str(number): {key: round(getattr(found, key), 4) for key in fields}
                        for number, found in run.samples.get((name, workload.name), {}).items()
                    }
                    for workload in run.workloads
                },
            }
            for name, variant in run.variants.items()
        },
    }


def _rates_table(run: Run) -> str:
    return _table(run, lambda found: found.rate)


def _totals_table(run: Run) -> str:
    text = "Generated tokens by the whole time, prompts included; after it, seconds to the first token of the first and"
    text += " of the last sequence.\n\n"
    decodes = [workload for workload in run.workloads if not workload.is_prefill]
    lines = [_row("engine", *(workload.name for workload in decodes)), "|---|" + "---:|" * len(decodes)]
    for name in _measured(run):
        cells = []
        for workload in decodes:
            found = list(run.samples.get((name, workload.name), {}).values())
            if not found:
                cells.append("-")
                continue
            first = statistics.median(each.first_token_s for each in found)
            last = statistics.median(each.last_first_token_s for each in found)
            cells.append(f"{spread(each.total_rate for each in found)}; {first:.2f}, {last:.2f} s")
        lines.append(_row(name, *cells))
    return text + "\n".join(lines)


def _fits_table(run: Run) -> str:
    """Return seconds as a n + b n^2 of n prompt tokens for each engine; nothing with fewer than three lengths."""
    singles = [workload for workload in run.workloads if workload.is_prefill and workload.prompts == 1]
    if len(singles) < 3:
        return ""
    lines = [
        _row("engine", "a, us per token", "b, us per token and 1,000 tokens", "largest residual"),
        "|---|---:|---:|---:|",
    ]
    for name in _measured(run):
        points = [
            (workload.prompt_tokens, statistics.median(found.seconds for found in samples.values()))
            for workload in singles
            if (samples := run.samples.get((name, workload.name)))
        ]
        if len(points) == len(singles):
            linear, square, residual = fit_prefill(points)
            lines.append(_row(name, f"{linear * 1e6:.0f}", f"{square * 1e9:.1f}", f"{residual:.0%}"))
    return "\n".join(lines)


def fit_prefill(points: Sequence[tuple[int, float]]) -> tuple[float, float, float]:
    """Return (a, b, largest relative residual) of the least squares fit t = a n + b n^2, relative errors squared.

    Args:
        points: (n, t), at least two of different n.
    """
    # In terms of t / n = a + b n, each weighted by n / t: a line.
    weights = [(n / t) ** 2 for n, t in points]
    total = sum(weights)
    mean_n = sum(weight * n for weight, (n, _) in zip(weights, points, strict=True)) / total
    mean_y = sum(weight * t / n for weight, (n, t) in zip(weights, points, strict=True)) / total
    covariance = sum(weight * (n - mean_n) * (t / n - mean_y) for weight, (n, t) in zip(weights, points, strict=True))
    square = covariance / sum(weight * (n - mean_n) ** 2 for weight, (n, _) in zip(weights, points, strict=True))
    linear = mean_y - square * mean_n
    return linear, square, max(abs(linear * n + square * n * n - t) / t for n, t in points)


def _table(run: Run, value: Any) -> str:
    lines = [_row("engine", *(workload.name for workload in run.workloads)), "|---|" + "---:|" * len(run.workloads)]
    for name in _measured(run):
        cells = (
            spread(value(found) for found in run.samples.get((name, workload.name), {}).values())
            for workload in run.workloads
        )
        lines.append(_row(name, *cells))
    return "\n".join(lines)


def _ratios_table(run: Run) -> str:
    families = list(dict.fromkeys(variant.family for variant in run.variants.values()))
    peers = [family for family in families if not family.startswith("herd-")]
    lines = [_row("workload", "Herd", "peer", "ratio by round"), "|---|---|---|---:|"]
    for workload in run.workloads:
        for is_quantized in (False, True):
            for mine in (family for family in families if family.startswith("herd-")):
                for peer in peers:
                    ours = run.best(mine, workload.name, is_quantized=is_quantized)
                    theirs = run.best(peer, workload.name, is_quantized=is_quantized)
                    if ours and theirs:
                        found = spread(run.ratios(ours, theirs, workload.name), 2)
                        lines.append(_row(workload.name, ours, theirs, found))
    return "\n".join(lines)


def _goals_table(run: Run) -> str:
    lines = [_row("workload", "Herd", "against", "goal", "ratio by round", ""), "|---|---|---|---:|---:|---|"]
    asked = {workload.name for workload in run.workloads}
    for goal in (each for each in GOALS if each.workload in asked):
        ours = run.best(goal.ours, goal.workload, is_quantized=goal.is_quantized)
        theirs = run.best(goal.theirs, goal.workload, is_quantized=goal.is_quantized)
        ratios = run.ratios(ours, theirs, goal.workload) if ours and theirs else []
        verdict = "not measured"
        if ratios:
            verdict = "met" if statistics.median(ratios) >= goal.at_least else "missed"
        names = (ours or goal.ours, theirs or goal.theirs)
        lines.append(_row(goal.workload, *names, f"{goal.at_least:g}", spread(ratios, 2), verdict))
    return "\n".join(lines)


def _engines_table(run: Run) -> str:
    lines = [
        _row("engine", "peak memory, GB", "in all", "agrees", "busy while idle", "load, s", "versions"),
        "|---|---|---:|---|---:|---:|---|",
    ]
    for name in _measured(run):
        peaks = run.peak_bytes.get(name, {})
        ready = run.ready.get(name, {})
        versions = ", ".join(f"{key} {value}" for key, value in ready.get("versions", {}).items())
        lines.append(
            _row(
                name,
                ", ".join(f"{process} {size / 1e9:.2f}" for process, size in peaks.items()),
                f"{sum(peaks.values()) / 1e9:.2f}",
                run.agreement.get(name, "-"),
                f"{run.idle_share.get(name, 0):.2f}",
                str(ready.get("load_s", "-")),
                versions,
            )
        )
    settings = [f"- {name}: `{run.ready[name].get('settings')}`" for name in _measured(run) if name in run.ready]
    return "\n".join(lines) + "\n\nSettings:\n\n" + "\n".join(settings)


def _measured(run: Run) -> list[str]:
    return [name for name in run.variants if any((name, workload.name) in run.samples for workload in run.workloads)]


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"
