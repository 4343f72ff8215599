"""Files that others may exchange while a process lives: told once they are others."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path

_LOOK_EVERY_S = 1.0

Stamps = tuple[tuple[int, int, int] | None, ...]
"""What changes when a file does, also where a link is turned to another one, by file; None: it is not there."""


class WatchedFiles:
    """Looks at files, at most once a second. For one thread at a time.

    Args:
        files: those that belong together.
        clock: monotonic seconds.
    """

    def __init__(self, files: Iterable[Path], clock: Callable[[], float] = time.monotonic) -> None:
        self._files = tuple(files)
        self._clock = clock
        self._looked_at = clock()
        self._settled = self._look()

    def changed(self) -> Stamps | None:
        """Return what files are now that are others than those that were settled; None: they are not, or who knows."""
        if self._clock() - self._looked_at < _LOOK_EVERY_S:
            return None
        self._looked_at = self._clock()
        found = self._look()
        return None if found == self._settled else found

    def settle(self, stamps: Stamps) -> None:
        """Take files that `changed` told of as known: they are not told again."""
        self._settled = stamps

    def _look(self) -> Stamps:
        return tuple(map(_stamp, self._files))


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
