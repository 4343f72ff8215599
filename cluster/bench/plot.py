"""A run as a picture. Needs matplotlib, which the extra `plot` installs.

Six panels: latency over time, the distributions of TTFT and of the time per token, tokens per second and requests in
flight over time, and the numbers of the table.
"""

from __future__ import annotations

import io
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cluster.bench.measurement import Measurement, Status
from cluster.bench.plot_page import write_page
from cluster.bench.report import STATISTICS, describe_outcome, describe_run, format_ms, latency_rows, throughput_lines
from cluster.bench.session import Result
from cluster.bench.slo import Slo
from cluster.bench.statistics import Distribution
from cluster.bench.summary import Summary, concurrency_steps
from protos.errors import BadConfig, InvalidRequest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".html", ".png", ".svg")
_MOST_BINS, _SHORTEST_BIN_S = 60, 0.25
_BLUE, _ORANGE, _GREEN, _RED, _GREY = "#0072b2", "#d55e00", "#009e73", "#c1121f", "#666666"
"""Told apart by colour-blind readers, too (Okabe and Ito); red marks what went wrong."""
_STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 8,
    "lines.linewidth": 1.4,
}


def check_plot(path: Path) -> None:
    """Check that a picture can be drawn.

    Raises:
        InvalidRequest: the file's ending is none we draw.
        BadConfig: matplotlib is not installed.
    """
    if path.suffix.lower() not in ENDINGS:
        raise InvalidRequest(f"--plot: expected a file ending in {', '.join(ENDINGS)}, found {path}: change its name")
    if find_spec("matplotlib") is None:
        raise BadConfig("--plot: expected matplotlib, found none: pip install 'llama-herd[plot]', or leave --plot out")


def draw_plot(result: Result, summary: Summary, path: Path) -> None:
    """Draw a run into a file that needs nothing else."""
    kind = path.suffix.lower().removeprefix(".")
    if kind == "html":
        write_page(result, summary, _render(result, summary, "svg").decode(), path)
    else:
        path.write_bytes(_render(result, summary, kind))


def _render(result: Result, summary: Summary, kind: str) -> bytes:
    import matplotlib as mpl

    # Chosen for this figure alone: no window, whatever the environment says.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):  # type: ignore[arg-type]  # keys are checked when it runs
        figure = Figure(figsize=(13, 7.6), dpi=120, layout="constrained")
        FigureCanvasAgg(figure)
        _draw_panels(figure, result, summary)
        buffer = io.BytesIO()
        # Without a date, the same run makes the same bytes.
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else None)
    return buffer.getvalue()


def _draw_panels(figure: Figure, result: Result, summary: Summary) -> None:
    measurements = [each for each in result.measurements if each.status is not Status.NOT_SENT]
    unsent = [each for each in result.measurements if each.status is Status.NOT_SENT]
    answered = [each for each in measurements if each.status is Status.OK]
    slo = result.settings.slo or Slo()
    ((over_time, ttft, token), (throughput, flight, numbers)) = figure.subplots(2, 3)
    _draw_latency(over_time, measurements, unsent, result.duration_s)
    _draw_distribution(
        ttft, "Time to first token", {"TTFT": [each.ttft_s for each in answered]}, summary.latencies.ttft_ms, slo.ttft
    )
    token_lines: dict[str, list[Any]] = {
        "time per output token": [each.tpot_s for each in answered],
        "gap between messages": [gap for each in answered for gap in each.gaps_s()],
    }
    _draw_distribution(token, "Time per output token", token_lines, summary.latencies.tpot_ms, slo.tpot)
    _draw_throughput(throughput, measurements, result.duration_s)
    _draw_flight(flight, measurements, result.duration_s)
    _write_numbers(numbers, summary)
    figure.suptitle(f"{describe_run(result)}\n{describe_outcome(summary)}", x=0.01, ha="left", fontsize=10)


def _draw_latency(axes: Axes, measurements: list[Measurement], unsent: list[Measurement], duration_s: float) -> None:
    answered = [each for each in measurements if each.status is Status.OK]
    failed = [each for each in measurements if each.status is Status.FAILED]
    dots: dict[str, Any] = {"s": 10, "alpha": 0.7, "linewidths": 0, "rasterized": len(measurements) > 2000}
    axes.scatter([e.sent_s for e in answered], [e.e2e_s for e in answered], color=_BLUE, label="end to end", **dots)
    ttft_s = [each.ttft_s or 0.0 for each in answered]
    axes.scatter([each.sent_s for each in answered], ttft_s, color=_ORANGE, label="first token", **dots)
    if failed:
        ends = [each.e2e_s for each in failed]
        axes.scatter([each.sent_s for each in failed], ends, color=_RED, marker="x", s=22, label="failed")
    if unsent:
        axes.scatter([e.sent_s for e in unsent], [0.0 for _ in unsent], color=_RED, marker="|", s=40, label="not sent")
    _finish(axes, "Latency of requests", "sent at (s)", "s", duration_s)
    axes.legend(loc="upper left", ncols=2)
    axes.set_ylim(top=max([each.e2e_s for each in [*answered, *failed]], default=1) * 1.25 or 1)


def _draw_distribution(
    axes: Axes, title: str, lines: dict[str, list[Any]], found: Distribution | None, bound_s: float | None
) -> None:
    """Draw how many of the values are below each, and the percentiles of the first line."""
    for (name, values), colour in zip(lines.items(), (_BLUE, _GREEN), strict=False):
        ordered = np.sort(np.asarray([each for each in values if each is not None], dtype=np.float64)) * 1000
        if ordered.size:
            shares = np.arange(1, ordered.size + 1) / ordered.size
            kept = np.unique(np.linspace(0, ordered.size - 1, 1000).astype(int))  # a picture shows no more
            axes.step(ordered[kept], shares[kept], where="post", color=colour, label=name)
    if found:
        for percent in (50, 90, 99):
            value = getattr(found, f"p{percent}")
            axes.plot([value], [percent / 100], "o", color=_BLUE, markersize=4)
            place: dict[str, Any] = {"textcoords": "offset points", "xytext": (6, -11), "fontsize": 8, "color": _BLUE}
            place["bbox"] = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 0.5}
            axes.annotate(f"p{percent}  {format_ms(value)}", (value, percent / 100), **place)
        axes.set_xlim(*_limits_ms(lines, bound_s))
    if bound_s is not None:
        axes.axvline(bound_s * 1000, color=_RED, linestyle="--", label="objective")
    if len(lines) > 1 or bound_s is not None:
        axes.legend(loc="lower right")
    axes.set_ylim(0, 1.02)
    axes.set_title(title)
    axes.set_xlabel("ms")
    axes.set_ylabel("share of values below")


def _limits_ms(lines: dict[str, list[Any]], bound_s: float | None) -> tuple[float, float]:
    """Return an axis that shows all but the longest hundredth: one stall would squeeze everything else to a line."""
    known = [[value for value in values if value is not None] for values in lines.values()]
    high_s = max((float(np.percentile(values, 99)) for values in known if values), default=1.0)
    return 0.0, max(high_s, bound_s or 0.0) * 1000 * 1.15 or 1.0


def _draw_throughput(axes: Axes, measurements: list[Measurement], duration_s: float) -> None:
    num_bins = int(min(max(duration_s / _SHORTEST_BIN_S, 1), _MOST_BINS))
    edges = np.linspace(0, max(duration_s, 1e-3), num_bins + 1)
    width_s = edges[1] - edges[0]
    times = np.concatenate([np.asarray(each.message_s) for each in measurements] or [np.empty(0)])
    tokens = np.concatenate([np.asarray(each.message_tokens) for each in measurements] or [np.empty(0)])
    rates = np.histogram(times, edges, weights=tokens)[0] / width_s
    axes.stairs(rates, edges, color=_BLUE, fill=True, alpha=0.25)
    axes.stairs(rates, edges, color=_BLUE, linewidth=1.4)
    _finish(axes, "Output tokens per second", "time (s)", f"tokens/s, in steps of {width_s:.2g} s", duration_s)


def _draw_flight(axes: Axes, measurements: list[Measurement], duration_s: float) -> None:
    from matplotlib.ticker import MaxNLocator

    steps = [(0.0, 0), *concurrency_steps(measurements)]
    axes.step([at for at, _ in steps], [running for _, running in steps], where="post", color=_BLUE)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _finish(axes, "Requests in flight", "time (s)", "requests", duration_s)


def _write_numbers(axes: Axes, summary: Summary) -> None:
    """Write the table: percentiles, then throughput."""
    axes.axis("off")
    shown = [STATISTICS.index(name) for name in ("p50", "p90", "p99")]
    rows = [f"{'milliseconds':<22}" + "".join(f"{STATISTICS[index]:>9}" for index in shown)]
    for name, cells in latency_rows(summary):
        rows.append(f"{name:<22}" + "".join(f"{cells[index]:>9}" for index in shown))
    rows.append("")
    rows += [f"{name:<17}{value}" for name, value in throughput_lines(summary)]
    rows += [f"{error.count} x {error.kind}" for error in summary.errors[:4]]
    axes.text(0, 1, "\n".join(rows), family="monospace", fontsize=8, va="top", linespacing=1.5)


def _finish(axes: Axes, title: str, x_label: str, y_label: str, duration_s: float) -> None:
    axes.set_title(title)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.set_xlim(0, max(duration_s, 1e-3))
    axes.set_ylim(bottom=0)
