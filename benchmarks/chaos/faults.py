"""Faults, each done to one process: a small object that can be injected and lifted.

A slow process is one that is stopped most of the time, in turns of some milliseconds. That starves it by a known
factor and takes nothing from anybody else; a low priority does nothing while a core is idle, and a process that hogs
the cores slows down the router and the measurement too.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from .processes import wait_gone

_GONE_S = 5.0


class Fault(Protocol):
    """Something that goes wrong for a while."""

    def inject(self) -> None:
        """Let it begin."""

    def lift(self) -> None:
        """Let it end. Idempotent."""


class Kill:
    """SIGKILL; nothing to lift: whoever watches the process has to replace it.

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def inject(self) -> None:
        """Kill it; returns when it is dead."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        wait_gone([self._pid], _GONE_S)

    def lift(self) -> None:
        """Do nothing."""


class Stop:
    """SIGSTOP, later SIGCONT: a process that hangs with its connections open.

    Args:
        pid: of the process.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def inject(self) -> None:
        """Stop it."""
        os.kill(self._pid, signal.SIGSTOP)

    def lift(self) -> None:
        """Let it go on, if somebody else has not ended it."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGCONT)


class Slow:
    """A process that gets a small share of the time it would have.

    Args:
        pid: of the process.
        share: of the time it may run, between 0 and 1.
        turn_s: seconds of one turn of running and standing still.
    """

    def __init__(self, pid: int, share: float = 0.05, turn_s: float = 0.1) -> None:
        self._pid = pid
        self._run_s, self._still_s = turn_s * share, turn_s * (1 - share)
        self._lifted = threading.Event()
        self._thread = threading.Thread(target=self._take_turns, name="slow", daemon=True)

    def inject(self) -> None:
        """Begin to starve it."""
        self._thread.start()

    def lift(self) -> None:
        """Give it all its time again."""
        self._lifted.set()
        if self._thread.is_alive():
            self._thread.join()

    def _take_turns(self) -> None:
        with suppress(ProcessLookupError):
            try:
                while not self._lifted.is_set():
                    os.kill(self._pid, signal.SIGSTOP)
                    self._lifted.wait(self._still_s)
                    os.kill(self._pid, signal.SIGCONT)
                    self._lifted.wait(self._run_s)
            finally:
                os.kill(self._pid, signal.SIGCONT)


class FullDisk:
    """A file system without a free byte.

    Args:
        folder: on a file system of its own; whatever else is there loses its room too.
    """

    def __init__(self, folder: Path) -> None:
        self._filler = folder / "filler"

    def inject(self) -> None:
        """Fill it, to the last byte."""
        with self._filler.open("wb", buffering=0) as file:
            for size in (2**20, 2**12, 1):
                block = bytes(size)
                with suppress(OSError):
                    while True:
                        file.write(block)

    def lift(self) -> None:
        """Give the room back."""
        self._filler.unlink(missing_ok=True)


class Both:
    """Two faults at once: the second is injected a moment after the first, so that it meets it.

    Args:
        first: lifted last.
        second: lifted first.
        apart_s: seconds between the two.
    """

    def __init__(self, first: Fault, second: Fault, apart_s: float = 1.0) -> None:
        self._first, self._second, self._apart_s = first, second, apart_s

    def inject(self) -> None:
        """Inject both."""
        self._first.inject()
        time.sleep(self._apart_s)
        self._second.inject()

    def lift(self) -> None:
        """Lift both."""
        self._second.lift()
        self._first.lift()
