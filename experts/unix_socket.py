"""Where a replica's Unix socket lies, and how those of replicas that were killed go away."""

from __future__ import annotations

import shutil
import socket
import tempfile
from pathlib import Path

_PREFIX = "herd-experts-"
_NAME = "socket"


def make_socket_path(folder: Path | None = None) -> Path:
    """Return a path for a new socket, in a folder of its own, after removing folders whose process has gone.

    A replica that is killed cannot remove its own; the next one of the host does.

    Args:
        folder: where; None: where the system keeps temporary files.
    """
    parent = folder or Path(tempfile.gettempdir())
    for left in parent.glob(f"{_PREFIX}*"):
        if not _is_in_use(left / _NAME):
            shutil.rmtree(left, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent)) / _NAME


def is_listening(path: Path) -> bool:
    """Tell whether a process listens at a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(str(path)) == 0


def _is_in_use(path: Path) -> bool:
    """Tell whether somebody listens there, or is about to: a folder without a socket was just made."""
    return not path.is_socket() or is_listening(path)
