"""Finds ports for servers that tests and benchmarks start."""

from __future__ import annotations

import os
import random
from pathlib import Path

from cluster.machine import check_port
from protos.errors import PortTaken

_FIRST = 20_000
"""Below it are those that Ray takes for its workers."""
_HIGHEST = 65_535
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")

_given: set[int] = set()


def find_free_port() -> int:
    """Return a TCP port that nobody listens on, never the same one twice.

    Many seconds may pass until it is listened on. So it is none that the kernel gives to outgoing connections or to
    whoever binds port 0, and beside pytest-xdist's other workers none that they may choose.

    Raises:
        PortTaken: every one is in use.
    """
    candidates = [port for port in _candidates() if port not in _given]
    random.shuffle(candidates)
    for port in candidates:
        try:
            check_port(port, "a server", "its port option")
        except PortTaken:
            continue
        _given.add(port)
        return port
    raise PortTaken("expected a free port, found none: end what listens (`ss -ltnp` names it)")


def _candidates() -> range:
    lowest = int(_EPHEMERAL.read_text().split()[0])
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    # Where the kernel gives away nearly all ports there is none that it does not.
    ports = range(_FIRST, lowest) or range(_FIRST, _HIGHEST + 1)
    return ports[worker::workers]
