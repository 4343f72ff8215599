"""Where a gRPC server listens, refused in words when it cannot."""

from __future__ import annotations

import socket

import grpc

from protos.errors import BadConfig, PortTaken
from protos.tls import Identity

_MAX_PORT = 65_535


def address_of(host: str, port: int) -> str:
    """Return host:port, the host in brackets if it is an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(server: grpc.Server, host: str, port: int, identity: Identity | None = None) -> int:
    """Have a server listen before it is started; return the port.

    Args:
        server: not started.
        host: address of this machine; "0.0.0.0" for every network.
        port: TCP port; 0 chooses a free one.
        identity: who it is, and whom it believes; None: no encryption.

    Raises:
        PortTaken: another process listens there, or it is no address of this machine.
        BadConfig: the port is none.
    """
    _check_port(host, port)
    address = address_of(host, port)
    try:
        if identity is None:
            return int(server.add_insecure_port(address))
        return int(server.add_secure_port(address, identity.server_credentials()))
    except RuntimeError as error:
        raise PortTaken(f"{address}: expected to listen there, found: {error}: choose another port") from error


def _check_port(host: str, port: int) -> None:
    """Check that a port can be listened on: gRPC keeps the system's reason to itself, or rather to the log."""
    if not 0 <= port <= _MAX_PORT:
        raise BadConfig(f"port: expected 0 to {_MAX_PORT}, found {port}: choose another, or 0 for a free one")
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            # As every server does: a port whose last connections are still closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen()
    except OSError as error:
        raise PortTaken(
            f"{host}:{port}: expected this machine's address and a free port, found: {error.strerror}: choose another"
        ) from error
