"""The gRPC server of an expert replica: one TCP port and, for routers on the same host, a Unix socket."""

from __future__ import annotations

from collections.abc import Callable
from concurrent import futures
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from experts.batcher import BatcherLimits
from experts.replica import HeldExperts, Replica
from experts.servicer import ExpertServicer
from experts.unix_socket import is_listening
from experts.weights_servicer import WeightsServicer
from protos.channel import server_options
from protos.errors import BadConfig, PortTaken
from protos.expert.v1 import expert_pb2, expert_pb2_grpc
from protos.introspection import Introspection
from protos.listening import address_of, listen
from protos.tls import Identity
from protos.traced import TellAnswer
from protos.unreadable import RefuseUnreadable
from protos.weights.v1 import weights_pb2, weights_pb2_grpc

SERVICE_NAME: str = expert_pb2.DESCRIPTOR.services_by_name["ExpertService"].full_name
WEIGHTS_SERVICE_NAME: str = weights_pb2.DESCRIPTOR.services_by_name["WeightsService"].full_name

# What Linux keeps of a socket's path, in bytes, less the closing zero.
_MAX_UNIX_PATH_BYTES = 107
# Threads for calls that are not Dispatch streams: Describe, Drain, Fetch (one at a time), health, reflection.
_SPARE_THREADS = 8
# What calls other than dispatches get to end by themselves, in seconds; with none open, stopping takes none.
_GOODBYE_S = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerLimits:
    """How much a replica takes on at once."""

    max_streams: int = 64
    """Dispatch streams, one per router; at least 1. Further ones are refused with Overloaded."""
    max_in_flight: int = 64
    """Dispatches of one stream accepted and not yet answered; at least 1. Reading pauses there, nothing is refused."""
    batcher: BatcherLimits = field(default_factory=BatcherLimits)
    """What may wait to be computed."""


class ExpertServer:
    """Serves held experts until stopped.

    Args:
        held: the experts.
        host: address to listen on; "0.0.0.0" for every network.
        port: TCP port; 0 chooses a free one.
        unix_path: where to make a Unix socket; None: none.
        replica_id: unique in the cluster, new after every restart; None makes one up.
        limits: how much to take on.
        on_first_dispatch: called once, after the first dispatch was computed; it must not block.
        identity: who this process is to others over TCP; None: no encryption.
        trace: is told of answers to dispatches that name a span; None: nobody makes spans here.
    """

    def __init__(
        self,
        held: HeldExperts,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        unix_path: Path | None = None,
        replica_id: str | None = None,
        limits: ServerLimits = ServerLimits(),
        on_first_dispatch: Callable[[], None] = lambda: None,
        identity: Identity | None = None,
        trace: TellAnswer | None = None,
    ) -> None:
        self._identity = identity
        self.replica = Replica(held, replica_id=replica_id, limits=limits.batcher, on_first_dispatch=on_first_dispatch)
        self.host = host
        self.port = port
        self._unix_path = unix_path
        self._has_socket = False
        self._servicer = ExpertServicer(
            self.replica, max_streams=limits.max_streams, max_in_flight=limits.max_in_flight, trace=trace
        )
        num_threads = limits.max_streams + _SPARE_THREADS
        self._server = grpc.server(
            futures.ThreadPoolExecutor(num_threads, thread_name_prefix="experts-call"),
            options=server_options(),
            interceptors=[RefuseUnreadable()],
            # More calls than threads would wait unseen for one to end; refused, they can go elsewhere.
            maximum_concurrent_rpcs=num_threads,
        )
        expert_pb2_grpc.add_ExpertServiceServicer_to_server(self._servicer, self._server)
        weights_pb2_grpc.add_WeightsServiceServicer_to_server(WeightsServicer(self.replica), self._server)
        services = (SERVICE_NAME, WEIGHTS_SERVICE_NAME)
        self._introspection = Introspection(self._server, services, watched=(SERVICE_NAME,))

    @property
    def address(self) -> str:
        """host:port listened on."""
        return address_of(self.host, self.port)

    @property
    def unix_address(self) -> str | None:
        """unix:PATH listened on, None without a Unix socket."""
        return f"unix:{self._unix_path}" if self._unix_path else None

    @property
    def num_streams(self) -> int:
        """Dispatch streams open now."""
        return self._servicer.num_streams

    def start(self) -> None:
        """Listen and serve.

        Raises:
            PortTaken: another process listens there, or it is no address of this machine.
            BadConfig: the port is none, or the socket's path is too long, or its folder is missing.
        """
        try:
            self._listen()
        except BaseException:
            self.stop()
            raise
        self._introspection.tell(is_serving=True)
        self._server.start()

    def _listen(self) -> None:
        self.port = listen(self._server, self.host, self.port, self._identity)
        if self._unix_path is not None:
            _check_unix_path(self._unix_path)
            self._server.add_insecure_port(f"unix:{self._unix_path}")
            self._has_socket = True

    def drain(self, timeout_s: float | None) -> int:
        """Accept nothing more and end the streams once all is answered; return the dispatches left unanswered."""
        self._introspection.tell(is_serving=False)
        return self._servicer.drain(timeout_s)

    def stop(self, grace_s: float = 0) -> bool:
        """Drain for at most `grace_s` seconds, then stop; tell whether every accepted dispatch was answered."""
        remaining = self.drain(grace_s)
        self._server.stop(_GOODBYE_S if grace_s else 0).wait()
        self.replica.batcher.close()
        if self._unix_path is not None and self._has_socket:
            self._unix_path.unlink(missing_ok=True)
        return not remaining


def _check_unix_path(path: Path) -> None:
    """Check that a socket can be made there without taking it from a process that listens."""
    if len(str(path).encode()) > _MAX_UNIX_PATH_BYTES:
        raise BadConfig(f"{path}: expected a path of at most {_MAX_UNIX_PATH_BYTES} bytes: put the socket elsewhere")
    if not path.parent.is_dir():
        raise BadConfig(f"{path}: expected an existing folder for the socket, found none: make {path.parent}")
    if not path.exists():
        return
    if not path.is_socket():
        raise BadConfig(f"{path}: expected a Unix socket or nothing, found something else: choose another path")
    if is_listening(path):
        raise PortTaken(f"{path}: expected no process to listen there, found one: choose another path")
    path.unlink()
