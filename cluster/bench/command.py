"""A benchmark in a terminal: progress, signals, report, files, exit code."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from cluster.bench.plot import check_plot, draw_plot
from cluster.bench.progress import ProgressLine
from cluster.bench.record import write_record
from cluster.bench.report import print_report
from cluster.bench.session import Result, run_bench
from cluster.bench.settings import Settings
from cluster.bench.summary import summarise
from protos.errors import InvalidRequest

FAILED, INTERRUPTED = 1, 130


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """Files to write; None: not this one."""

    json: Path | None = None
    """The record; see cluster/bench/record.py."""
    json_messages: bool = False
    """Write the time of every message into it."""
    plot: Path | None = None
    """The picture; its ending says what kind."""


def run_command(settings: Settings, outputs: Outputs) -> int:
    """Run, print and write; return the exit code: 130 after Ctrl-C, 1 when no request succeeded or the server went.

    Raises:
        ServingError: the run cannot begin, or a file cannot be written.
    """
    _check_outputs(outputs)
    with ProgressLine(settings, Console(stderr=True, highlight=False)) as progress:
        result = asyncio.run(_run(settings, progress))
    summary = summarise(result)
    print_report(result, summary, Console(highlight=False, soft_wrap=True))
    if outputs.json is not None:
        write_record(result, summary, outputs.json, with_messages=outputs.json_messages)
    if outputs.plot is not None:
        draw_plot(result, summary, outputs.plot)
    if result.is_interrupted:
        return INTERRUPTED
    return FAILED if result.gave_up or not summary.requests.ok else 0


async def _run(settings: Settings, progress: ProgressLine) -> Result:
    """Run until the end, Ctrl-C or SIGTERM; a second Ctrl-C waits for nothing."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM)

    def on_signal() -> None:
        stop.set()
        for number in numbers:
            loop.remove_signal_handler(number)

    for number in numbers:
        loop.add_signal_handler(number, on_signal)
    return await run_bench(settings, stop, progress)


def _check_outputs(outputs: Outputs) -> None:
    """Find out now, not after the run, that its results cannot be written.

    Raises:
        ServingError: they cannot.
    """
    if outputs.plot is not None:
        check_plot(outputs.plot)
    for path in (outputs.json, outputs.plot):
        if path is None:
            continue
        try:
            path.open("ab").close()
        except OSError as error:
            raise InvalidRequest(f"expected a file that can be written, found {path}: {error.strerror}") from error
