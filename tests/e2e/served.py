"""`herd serve` as users run it, held to a clean end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.chaos.application import Application


@contextmanager
def served(*settings: str, model: str | None = None, folder: Path | None = None) -> Iterator[Application]:
    """Serve inside the context, without spare processes unless asked for; after it, Ctrl-C has to end everything."""
    with Application(("experts.warm_spares=0", *settings), model=model, folder=folder) as application:
        yield application
        assert application.end() == 0, application.output
        assert application.leftovers() == []
