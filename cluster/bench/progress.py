"""A line that moves while a run does."""

from __future__ import annotations

import asyncio

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from cluster.bench.load import Load
from cluster.bench.runner import Runner
from cluster.bench.settings import Settings
from cluster.bench.target import Clock, ServerFacts

_PERIOD_S = 0.25


class ProgressLine:
    """Shows how far a run is; nothing where standard error is no terminal. An Observer.

    Args:
        settings: of the run.
        console: to draw on.
    """

    def __init__(self, settings: Settings, console: Console) -> None:
        self._settings = settings
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[state]}"),
            TimeElapsedColumn(),
            console=console,
            auto_refresh=False,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar: TaskID | None = None
        self._updating: asyncio.Task[None] | None = None

    def __enter__(self) -> ProgressLine:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def on_warmup(self, facts: ServerFacts) -> None:
        """Show that the server was found."""
        state = f"{self._settings.warmup} requests" if self._settings.warmup else ""
        self._bar = self._progress.add_task(f"warming up {facts.model}", total=None, state=state)
        self._progress.refresh()

    def on_start(self, load: Load, runner: Runner, clock: Clock) -> None:
        """Follow the run from now on."""
        if not self._progress.disable:
            self._updating = asyncio.create_task(self._update(load.count, runner, clock))

    async def _update(self, count: int | None, runner: Runner, clock: Clock) -> None:
        assert self._bar is not None
        total = self._settings.duration_s if count is None else count
        self._progress.reset(self._bar, description="requests" if count else "seconds", total=total, state="")
        while True:
            done = runner.num_done if count else min(clock.now_s(), total or 0)
            self._progress.update(self._bar, completed=done, state=_describe(runner, count), refresh=True)
            await asyncio.sleep(_PERIOD_S)


def _describe(runner: Runner, count: int | None) -> str:
    of = f"/{count}" if count else ""
    failed = f", {runner.num_failed} failed" if runner.num_failed else ""
    return f"{runner.num_done}{of} done, {len(runner.in_flight)} in flight{failed}"
