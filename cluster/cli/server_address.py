"""A channel to a running Herd, given its address."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import grpc

from protos.errors import InvalidRequest, ReplicaUnavailable, ServingError, from_rpc_error

DEFAULT_ADDRESS = "localhost:9000"
CALL_TIMEOUT_S = 10.0
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
            yield channel
        except grpc.RpcError as error:
            sys.stdout.flush()
            raise _explain(error, address) from error


def _explain(error: grpc.RpcError, address: str) -> ServingError:
    found = from_rpc_error(error, address)
    if type(found) is ReplicaUnavailable and not error.trailing_metadata():
        return ReplicaUnavailable(
            f"expected a running Herd at {address}, found nobody who answers: start one with `herd serve`, or give its "
            "address with --address"
        )
    return found
