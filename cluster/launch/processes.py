"""The processes below this one: makes sure that none outlives it."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
_POLL_S = 0.05


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent dies, so that `descendants` still finds them. Linux only."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants(pid: int | None = None) -> list[int]:
    """Return the processes below a process, dead ones that nobody has waited for left out.

    Args:
        pid: whose; None: this one's.
    """
    children: dict[int, list[int]] = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and (parent := _parent(path)) is not None:
            children.setdefault(parent, []).append(int(path.name))
    found: list[int] = []
    pending = [os.getpid() if pid is None else pid]
    while pending:
        below = children.get(pending.pop(), [])
        found += below
        pending += below
    return found


class VitalChildren:
    """Children of this process without which nothing works.

    Args:
        names: of their programs; each must be there now.
    """

    def __init__(self, *names: str) -> None:
        children = {_read(pid, "comm"): pid for pid in descendants() if _parent(Path(f"/proc/{pid}")) == os.getpid()}
        self._pids = {name: children[name] for name in names}

    def dead(self) -> list[str]:
        """Name those that have ended."""
        return [name for name, pid in self._pids.items() if _parent(Path(f"/proc/{pid}")) is None]


def kill_descendants(give_up_after_s: float = 10.0) -> list[int]:
    """Kill every process below this one, those they start meanwhile too, and reap them.

    Returns:
        Those still there at the end: processes that even SIGKILL does not move, stuck in the kernel.
    """
    give_up_at = time.monotonic() + give_up_after_s
    while (left := descendants()) and time.monotonic() < give_up_at:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap()
        time.sleep(_POLL_S)
    _reap()
    return left


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text().strip()
    except OSError:
        return ""


def _parent(path: Path) -> int | None:
    """Return the parent of a process that lives; None for one that does not."""
    try:
        # The command, in parentheses, may hold blanks and parentheses itself.
        state, parent = (path / "stat").read_text().rpartition(")")[2].split()[:2]
    except (OSError, ValueError):
        return None
    return None if state == "Z" else int(parent)


def _reap() -> None:
    """Take note of every dead child."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
