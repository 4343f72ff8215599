"""A channel to a running Herd, given its address; what a client needs besides comes from the environment.

HERD_API_KEY is sent with every call (on a command line, any `ps` would show it). HERD_CA, HERD_CERT and HERD_KEY name
files in PEM: the authorities to believe instead of the system's, and the certificate to show.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from protos.errors import InvalidRequest, ReplicaUnavailable, ServingError, Unauthenticated, from_rpc_error

DEFAULT_ADDRESS = "localhost:9000"
CALL_TIMEOUT_S = 10.0
API_KEY, CA, CERT, KEY = "HERD_API_KEY", "HERD_CA", "HERD_CERT", "HERD_KEY"
TLS_PREFIX = "https://"
_LOCAL = ("localhost", "127.0.0.1", "[::1]")


@contextmanager
def channel_to(address: str) -> Iterator[grpc.Channel]:
    """Yield a channel; failed calls within become errors of ours.

    Raises:
        InvalidRequest: the address is none.
        ServingError: what a call failed with.
    """
    plain = address.removeprefix(TLS_PREFIX)
    host, colon, port = plain.rpartition(":")
    if not (host and colon and port.isdigit()) or "/" in host:
        raise InvalidRequest(
            f"--address: expected HOST:PORT, or with TLS {TLS_PREFIX}HOST:PORT, found {address!r}; for example "
            f"{DEFAULT_ADDRESS}"
        )
    options = [("grpc.enable_http_proxy", 0)] if host in _LOCAL else []
    is_secure = address.startswith(TLS_PREFIX)
    with (
        grpc.secure_channel(plain, grpc.ssl_channel_credentials(*certificates()), options=options)
        if is_secure
        else grpc.insecure_channel(plain, options=options) as channel
    ):
        try:
            yield with_key(channel)
        except grpc.RpcError as error:
            sys.stdout.flush()
            raise _explain(error, address) from error


def certificates() -> tuple[bytes | None, bytes | None, bytes | None]:
    """Return what the environment names: authorities, key and certificate, each None where it names none.

    Raises:
        InvalidRequest: a file cannot be read, or a certificate is named without its key.
    """
    if (CERT in os.environ) != (KEY in os.environ):
        raise InvalidRequest(f"{CERT}, {KEY}: expected both or neither in the environment, found one; set the other")
    return _content(CA), _content(KEY), _content(CERT)


def _content(name: str) -> bytes | None:
    file = os.environ.get(name)
    try:
        return None if file is None else Path(file).read_bytes()
    except OSError as error:
        raise InvalidRequest(f"{name}: expected a readable file, found {file}: {error}; correct it") from error


def with_key(channel: grpc.Channel) -> grpc.Channel:
    """Return a channel that sends the environment's API key; the same one where there is no key."""
    key = os.environ.get(API_KEY)
    return grpc.intercept_channel(channel, _KeySender(key)) if key else channel


class _KeySender(
    grpc.UnaryUnaryClientInterceptor,  # type: ignore[type-arg]
    grpc.UnaryStreamClientInterceptor,  # type: ignore[type-arg]
):
    """Adds the key to every call."""

    def __init__(self, key: str) -> None:
        self._metadata = ("authorization", f"Bearer {key}")

    def intercept_unary_unary(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        """Send a call with one answer."""
        return continuation(self._with_key(details), request)

    def intercept_unary_stream(self, continuation: Callable[..., Any], details: Any, request: Any) -> Any:
        """Send a call with many."""
        return continuation(self._with_key(details), request)

    def _with_key(self, details: Any) -> Any:
        return details._replace(metadata=[*(details.metadata or ()), self._metadata])


def _explain(error: grpc.RpcError, address: str) -> ServingError:
    found = from_rpc_error(error, address)
    if type(found) is ReplicaUnavailable and not error.trailing_metadata():
        if "handshake" in found.message.lower() or "certificate" in found.message.lower():
            return ReplicaUnavailable(
                f"expected a server at {address} whose certificate is believed here, and that takes ours, found: "
                f"{found.message}; set {CA}, {CERT} and {KEY}"
            )
        return ReplicaUnavailable(
            f"expected a running Herd at {address}, found nobody who answers: start one with `herd serve`, or give its "
            "address with --address"
        )
    if isinstance(found, Unauthenticated):
        return Unauthenticated(f"{address}: {found.message}; here it is taken from the environment's {API_KEY}")
    return found
