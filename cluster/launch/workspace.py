"""The private folder of one running Herd: logs, sockets, Ray's own files."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TextIO

_LONGEST_PARENT = 24
"""Characters: below that folder Ray makes Unix sockets, whose paths the kernel limits to 107."""


class Workspace:
    """Makes the folder and, once told to, sends what any part of this process prints to a log in it.

    Ray writes to the standard streams from C++ and from several threads. What people should see is written to `stdout`
    and `stderr` here, copies of the originals.
    """

    def __init__(self) -> None:
        parent = tempfile.gettempdir()
        self.folder = Path(tempfile.mkdtemp(prefix="herd-", dir=parent if len(parent) <= _LONGEST_PARENT else "/tmp"))
        self.stdout: TextIO = sys.stdout
        self.stderr: TextIO = sys.stderr
        self.is_of_use = True
        """Whether anybody will want to read the logs."""
        self._saved: list[int] = []

    @property
    def logs(self) -> Path:
        """Return the folder to look for reasons in."""
        ray_logs = self.folder / "ray" / "session_latest" / "logs"
        return ray_logs if ray_logs.is_dir() else self.folder

    def capture_output(self) -> None:
        """Send the standard streams to `herd.log` from here on, other processes' that inherit them too."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._saved = [os.dup(1), os.dup(2)]
        self.stdout, self.stderr = (os.fdopen(os.dup(each), "w", buffering=1) for each in self._saved)
        log = os.open(self.folder / "herd.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)

    def close(self) -> None:
        """Give the standard streams back; delete the folder unless it is of use."""
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, saved in zip((1, 2), self._saved, strict=False):
            os.dup2(saved, stream)
            os.close(saved)
        self._saved = []
        if not self.is_of_use:
            shutil.rmtree(self.folder, ignore_errors=True)
