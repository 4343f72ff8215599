"""What `herd generate` shows on a terminal until the first token: how much of the prompt is computed, or the line."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from protos.inference.v1 import inference_pb2 as pb


class PromptBar:
    """Context manager; on a console that is no terminal it shows nothing.

    Args:
        console: standard error.
    """

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("prompt", total=None, visible=False)

    def __enter__(self) -> PromptBar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def update(self, progress: pb.Progress) -> None:
        """Show a report."""
        self._progress.update(
            self._task,
            description=described(progress),
            completed=progress.prompt_tokens_done,
            total=progress.prompt_tokens,
            visible=True,
        )

    def close(self) -> None:
        """Take it off the terminal. Idempotent."""
        self._progress.stop()


def described(progress: pb.Progress) -> str:
    """Return what a report says beside its bar."""
    if not progress.queue_position:
        return "prompt tokens"
    place = f"number {progress.queue_position} in line"
    if not progress.HasField("expected_start_ms"):
        return place
    return f"{place}, start in about {progress.expected_start_ms / 1000:.0f} s"
