"""A comparison as a table, as plain data and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.simulation.serving import Slo
from benchmarks.simulation.systems import Outcome

_COLOURS = ("#0072b2", "#666666", "#d55e00")
"""Told apart by colour-blind readers, too (Okabe and Ito)."""


def as_table(outcomes: Sequence[Outcome], notes: Mapping[str, str], slo: Slo) -> str:
    """Return a Markdown table, each system against the static Herd.

    Args:
        outcomes: one per system.
        notes: how each was sized, by name.
        slo: for all of them.
    """
    static = next((each for each in outcomes if each.name == "herd, static"), outcomes[0])
    lines = [
        "| system | GPU-hours | against static | peak GPUs | within SLO | late first token | slow tokens | lost | "
        "replayed | deaths | sized |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for each in outcomes:
        change = each.gpu_hours / static.gpu_hours - 1
        lines.append(
            f"| {each.name} | {each.gpu_hours:,.0f} | {change:+.1%} | {each.peak_gpus:,} "
            f"| {each.kept:.3%}{'' if each.meets(slo) else ' (missed)'} | {each.ttft_misses:,.0f} "
            f"| {each.token_misses:,.0f} | {each.lost:,.0f} | {each.replayed:,.0f} | {each.deaths} "
            f"| {notes[each.name]} |"
        )
    return "\n".join(lines)


def draw(outcomes: Sequence[Outcome], requests: Sequence[tuple[float, float]], path: Path) -> None:
    """Draw GPUs and requests over time.

    Args:
        outcomes: one per system.
        requests: (seconds, requests per second).
        path: ends in .svg or .png.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5.5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for outcome, colour in zip(outcomes, _COLOURS, strict=False):
        hours = [at / 3600 for at, _ in outcome.gpus]
        label = f"{outcome.name}: {outcome.gpu_hours:,.0f} GPU-hours"
        above.step(hours, [count for _, count in outcome.gpus], where="post", color=colour, label=label)
    below.plot([at / 3600 for at, _ in requests], [rate for _, rate in requests], color=_COLOURS[0], linewidth=1)
    for axes, label in ((above, "GPUs"), (below, "requests/s")):
        axes.set_ylabel(label)
        axes.set_ylim(bottom=0)
        axes.grid(color="#e5e5e5")
        axes.spines[["top", "right"]].set_visible(False)
    below.set_xlabel("hours")
    above.legend(loc="upper left", frameon=False)
    kind = path.suffix.removeprefix(".")
    # Without a date, the same run makes the same bytes.
    figure.savefig(path, format=kind, metadata={"Date": None} if kind == "svg" else None)
