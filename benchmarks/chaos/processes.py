"""Finds the processes of an application's parts: Ray gives each a title that says what it is."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from cluster.launch.processes import descendants

_POLL_S = 0.02


class Part(Enum):
    """A kind of process, by the beginning of its title.

    Ray's own (raylet, gcs_server) are missing: without them there is no application, and `herd serve` says so.
    """

    EXPERT = "ray::ServeReplica:herd:Experts"
    ROUTER = "ray::ServeReplica:herd:Router"
    LONG_ROUTER = "ray::ServeReplica:herd:LongRouter"
    CONTEXT = "ray::ServeReplica:herd:Context"
    FRONT_DOOR = "ray::ServeReplica:herd:FrontDoor"
    DIRECTORY = "ray::DirectoryActor"
    CONTROLLER = "ray::ServeController"
    PROXY = "ray::ProxyActor"

    @property
    def label(self) -> str:
        """Return how reports call it."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, kw_only=True, slots=True)
class Process:
    """A process of the application."""

    part: Part
    """What it is."""
    pid: int
    """Its process id."""
    name: str
    """What distinguishes it from others of its part where they differ: "Experts-1"."""


def find_processes(root_pid: int) -> list[Process]:
    """Return the living processes of every part below a process, oldest pid first."""
    found = []
    for pid in sorted(descendants(root_pid)):
        title = title_of(pid)
        for part in Part:
            if title.startswith(part.value):
                # After the title may follow the method that runs now.
                name = title.removeprefix("ray::").removeprefix("ServeReplica:herd:").split(".")[0].split()[0]
                found.append(Process(part=part, pid=pid, name=name))
    return found


def processes_of(root_pid: int, part: Part) -> list[Process]:
    """Return the living processes of one part."""
    return [each for each in find_processes(root_pid) if each.part is part]


def is_alive(pid: int) -> bool:
    """Tell whether a process runs or could: one that is dead and not reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def wait_gone(pids: Iterable[int], timeout_s: float) -> bool:
    """Wait until none of some processes is alive; tell whether that came in time."""
    pids = list(pids)
    give_up_at = time.monotonic() + timeout_s
    while any(is_alive(pid) for pid in pids):
        if time.monotonic() > give_up_at:
            return False
        time.sleep(_POLL_S)
    return True


def title_of(pid: int) -> str:
    """Return a process' command line, which Ray's processes set to say what they are; empty: it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""
