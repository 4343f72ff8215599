"""What `herd serve` shows while it starts: phases and a bar per replica; without a terminal, one line a phase."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn

from cluster.byte_text import format_bytes
from cluster.startup_board import ReplicaProgress


class StartupDisplay:
    """Context manager around a start.

    Args:
        console: where to write.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[detail]}", style="dim"),
            console=console,
            transient=True,
            # Loggers made meanwhile would keep rich's stand-ins for the standard streams, and print to the terminal.
            redirect_stdout=False,
            redirect_stderr=False,
            disable=not console.is_terminal,
        )
        self._bars: dict[str, TaskID] = {}
        self._phase: str | None = None
        self._phase_bar: TaskID | None = None
        self._phase_began = 0.0

    def __enter__(self) -> StartupDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._progress.stop()

    def phase(self, name: str) -> None:
        """Begin the next phase; the one before is done."""
        if name == self._phase:
            return
        self.end_phase()
        self._phase, self._phase_began = name, time.monotonic()
        self._phase_bar = self._progress.add_task(name, total=None, detail="")

    def replicas(self, progress: tuple[ReplicaProgress, ...]) -> None:
        """Show how far each replica is that has reported."""
        for replica in progress:
            if replica.replica_id not in self._bars:
                self._bars[replica.replica_id] = self._progress.add_task(f"  {replica.deployment}", detail="")
            self._progress.update(
                self._bars[replica.replica_id],
                completed=replica.total_bytes if replica.phase == "ready" else replica.done_bytes,
                total=replica.total_bytes or None,
                detail=_detail(replica),
            )

    def end_phase(self) -> None:
        """Say that what the last phase began is done."""
        if self._phase is None:
            return
        if self._phase_bar is not None:
            self._progress.remove_task(self._phase_bar)
        seconds = time.monotonic() - self._phase_began
        self._console.print(f"[green]✓[/] {self._phase} [dim]{seconds:.1f} s[/]", highlight=False)
        self._phase = None


def _detail(replica: ReplicaProgress) -> str:
    if replica.phase == "waiting":
        return f"waits for {replica.waits_for}"
    if replica.phase == "loading":
        return f"{format_bytes(replica.done_bytes)} of {format_bytes(replica.total_bytes)}"
    return replica.phase
