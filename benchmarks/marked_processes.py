"""Finds whatever somebody started, however far below: by a mark in the environment that children inherit."""

from __future__ import annotations

import os
import signal
import time
import uuid
from contextlib import suppress
from pathlib import Path

_NAME = "HERD_STARTED_BY"
_GONE_S = 10.0
_POLL_S = 0.05


class MarkedProcesses:
    """Processes with a mark of their own; `environment` is what to start the first ones with."""

    def __init__(self) -> None:
        self.environment = {_NAME: uuid.uuid4().hex}
        self._mark = f"{_NAME}={self.environment[_NAME]}".encode()

    def command_lines(self) -> list[str]:
        """Return the id and command line of each that lives."""
        lines = [(pid, _read(pid, "cmdline").decode(errors="replace")) for pid in self.pids()]
        return [f"{pid} {line.replace(chr(0), ' ').strip()}" for pid, line in lines]

    def pids(self) -> list[int]:
        """Return those that live."""
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if self._mark in _read(pid, "environ")]

    def kill(self) -> None:
        """End all of them at once, and those that they start meanwhile."""
        give_up_at = time.monotonic() + _GONE_S
        while (left := self.pids()) and time.monotonic() < give_up_at:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_POLL_S)


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
