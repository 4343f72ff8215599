"""Which connections a process holds, from /proc: whose streams run through it."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path

_ESTABLISHED, _LISTENING = "01", "0A"
_UNIX_CONNECTED = "03"


def served_hosts(pid: int, port: int) -> set[str]:
    """Return the local IPv4 addresses of a process's established connections to a TCP port it serves."""
    inodes = _socket_inodes(pid)
    hosts = set()
    for table in ("tcp", "tcp6"):
        for fields in _rows(Path("/proc/net") / table):
            address, _, hex_port = fields[1].rpartition(":")
            if fields[3] == _ESTABLISHED and int(hex_port, 16) == port and fields[9] in inodes:
                hosts.add(_ipv4(address))
    return hosts


def num_unix_clients(pid: int) -> int:
    """Count the connections to Unix sockets that a process listens on: the routers that an expert replica has."""
    inodes = _socket_inodes(pid)
    rows = _rows(Path("/proc/net/unix"))
    # Only the serving end of a connection has the path.
    return sum(1 for row in rows if len(row) > 7 and row[5] == _UNIX_CONNECTED and row[6] in inodes)


def num_descriptors(pid: int) -> int:
    """Count a process's open descriptors; 0 if it is gone."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return 0


def _socket_inodes(pid: int) -> set[str]:
    inodes = set()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue  # closed since it was listed
            if target.startswith("socket:["):
                inodes.add(target[len("socket:[") : -1])
    except OSError:
        pass
    return inodes


def _rows(table: Path) -> list[list[str]]:
    try:
        return [line.split() for line in table.read_text().splitlines()[1:]]
    except OSError:
        return []


def _ipv4(text: str) -> str:
    """Return an address of /proc/net/tcp or, mapped to IPv6, of tcp6: words in the machine's byte order."""
    return socket.inet_ntoa(struct.pack("=I", int(text[-8:], 16)))
