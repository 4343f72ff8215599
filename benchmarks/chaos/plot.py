"""Throughput over time as a picture, the faults marked. Needs matplotlib, which the extra `plot` installs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .outcome import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _RED, _GREY = "#0072b2", "#c1121f", "#666666"
"""As in `herd bench --plot`."""
_MOST_LABELS = 12


def draw_throughput(outcome: Outcome, path: Path) -> None:
    """Draw a run: a step a bin, a line where a fault was injected, grey until everything was back.

    Args:
        outcome: of the run.
        path: is overwritten; its ending says what kind of picture.
    """
    import matplotlib as mpl

    # No window, whatever the environment says.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    _draw(figure.subplots(), outcome)
    # Without a date and with names that are not random, the same run makes the same bytes.
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "herd"}):
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def _draw(axes: Axes, outcome: Outcome) -> None:
    edges = np.arange(len(outcome.throughput) + 1) * outcome.bin_s
    axes.stairs(outcome.throughput, edges, color=_BLUE, fill=True, alpha=0.25)
    axes.stairs(outcome.throughput, edges, color=_BLUE, linewidth=1.2)
    ends = [*(fault.injected_s for fault in outcome.faults[1:]), edges[-1]]
    for fault, end_s in zip(outcome.faults, ends, strict=False):
        axes.axvline(fault.injected_s, color=_RED, linewidth=1)
        back_s = end_s if fault.recovered_s is None else fault.recovered_s
        axes.axvspan(fault.injected_s, back_s, color=_GREY, alpha=0.15, linewidth=0, zorder=0)
    if len(outcome.faults) <= _MOST_LABELS:
        top = max(outcome.throughput, default=1.0)
        for fault in outcome.faults:
            text = axes.text(fault.injected_s, top, fault.label, rotation=90, va="top", ha="right", fontsize=7)
            text.set_color(_RED)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(0, max(float(edges[-1]), outcome.bin_s))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time (s)")
    axes.set_ylabel(f"tokens/s, in steps of {outcome.bin_s:g} s")
    axes.set_title(f"{outcome.scenario}: {len(outcome.faults)} faults", loc="left", fontsize=10)
