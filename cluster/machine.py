"""What this machine has: cores, memory, GPUs, ports. `gpus.py` looks for GPUs, this module for everything else."""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass, field
from pathlib import Path

from cluster.gpus import Gpus, usable_gpus
from protos.errors import PortTaken

_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The resources Herd may use."""

    cores: int
    """CPU cores this process may run on."""
    free_bytes: int
    """Bytes of memory that can be had without swapping, within the container's limit."""
    gpus: Gpus = field(default_factory=Gpus)
    """Its GPUs that this process may use."""


def read_machine() -> Machine:
    """Return what is there now."""
    return Machine(cores=_count_cores(), free_bytes=_free_bytes(), gpus=usable_gpus())


def whole_bytes() -> int:
    """Return the bytes of memory there are within the container's limit, free or not."""
    whole = _read_meminfo("MemTotal")
    try:
        return min(whole, int((_CGROUP / "memory.max").read_text()))
    except (OSError, ValueError):  # no limit is the word `max`
        return whole


def check_port(port: int, what: str, setting: str) -> None:
    """Check that nobody listens on a TCP port.

    Args:
        port: which.
        what: what for, as in "HTTP".
        setting: the option that changes it, as in "--http-port".

    Raises:
        PortTaken: it cannot be had.
    """
    for family, address in ((socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")):
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                # Connections of an earlier server that are still closing do not matter.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((address, port))
        except OSError as error:
            if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                continue  # a machine without IPv6
            found = "one in use" if error.errno == errno.EADDRINUSE else os.strerror(error.errno or 0).lower()
            raise PortTaken(
                f"expected port {port} free for {what}, found {found}: stop what listens there "
                f"(`ss -ltnp 'sport = :{port}'` names it) or choose another with {setting}"
            ) from error


def _count_cores() -> int:
    allowed = len(os.sched_getaffinity(0))
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
    except (OSError, ValueError):
        return allowed
    return allowed if quota == "max" else max(1, min(allowed, round(int(quota) / int(period))))


def _free_bytes() -> int:
    free = _read_meminfo("MemAvailable")
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):
        return free
    # Pages of files that were read count as used, but go when memory is asked for.
    return min(free, limit - used + int(stat.get("inactive_file", 0)))


def _read_meminfo(name: str) -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
