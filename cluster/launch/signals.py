"""Signals that ask Herd to end, counted instead of obeyed at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType

_ASKED_TO_END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndRequests:
    """Counts SIGINT, SIGTERM and SIGHUP from `install` on. For the main thread.

    Nothing is raised: an exception in the middle of starting Ray would leave processes behind.
    """

    def __init__(self) -> None:
        self.count = 0
        self._arrived = threading.Event()

    def install(self) -> None:
        """Take the signals over: a shell's background jobs start with SIGINT ignored, and Ray sets handlers."""
        for number in _ASKED_TO_END:
            signal.signal(number, self._count)

    def wait(self, seen: int, timeout_s: float) -> bool:
        """Wait until more than `seen` requests have come; tell whether they have.

        Args:
            seen: requests already dealt with.
            timeout_s: longest time to wait.
        """
        if self.count <= seen:
            self._arrived.wait(timeout_s)
            self._arrived.clear()
        return self.count > seen

    def _count(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        self._arrived.set()
