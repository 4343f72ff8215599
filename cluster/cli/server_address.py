"""A channel to a running Herd, given its address; the API key comes from the environment, where no `ps` shows it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from protos.errors import InvalidRequest, ReplicaUnavailable, ServingError, Unauthenticated, from_rpc_error

DEFAULT_ADDRESS = "localhost:9000"
CALL_TIMEOUT_S = 10.0
API_KEY = "HERD_API_KEY"
_LOCAL = ("localhost", "127.0.0.1", "[::1]")


@contextmanager
def channel_to(address: str) -> Iterator[grpc.Channel]:
    """Yield a channel; failed calls within become errors of ours.

    Raises:
        InvalidRequest: the address is none.
        ServingError: what a call failed with.
    """
    host, colon, port = address.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise InvalidRequest(f"--address: expected HOST:PORT, found {address!r}; for example {DEFAULT_ADDRESS}")
    options = [("grpc.enable_http_proxy", 0)] if host in _LOCAL else []
    with grpc.insecure_channel(address, options=options) as channel:
        try:
            yield with_key(channel)
        except grpc.RpcError as error:
            sys.stdout.flush()
            raise _explain(error, address) from error


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
        return ReplicaUnavailable(
            f"expected a running Herd at {address}, found nobody who answers: start one with `herd serve`, or give its "
            "address with --address"
        )
    if isinstance(found, Unauthenticated):
        return Unauthenticated(f"{address}: {found.message}; here it is taken from the environment's {API_KEY}")
    return found
