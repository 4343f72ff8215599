"""The gRPC server of a context shard."""

from __future__ import annotations

from concurrent import futures

import grpc

from context.servicer import ContextServicer
from context.shard import Shard
from protos.channel import server_options
from protos.context.v1 import context_pb2, context_pb2_grpc
from protos.introspection import Introspection
from protos.listening import address_of, listen
from protos.tls import Identity
from protos.traced import TellAnswer
from protos.unreadable import RefuseUnreadable

SERVICE_NAME: str = context_pb2.DESCRIPTOR.services_by_name["ContextService"].full_name

_MAX_STREAMS = 64
"""Attend streams, one per router."""
_SPARE_THREADS = 4
"""For calls that are not Attend streams."""


class ContextServer:
    """Serves a shard until stopped.

    Args:
        shard: who computes.
        host: address to listen on; "0.0.0.0" for every network.
        port: TCP port; 0 chooses a free one.
        identity: who this process is to others; None: no encryption.
        trace: is told of answers to steps that name a span; None: nobody makes spans here.
    """

    def __init__(
        self,
        shard: Shard,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        identity: Identity | None = None,
        trace: TellAnswer | None = None,
    ) -> None:
        self._identity = identity
        self.shard = shard
        self.host = host
        self.port = port
        num_threads = _MAX_STREAMS + _SPARE_THREADS
        self._server = grpc.server(
            futures.ThreadPoolExecutor(num_threads, thread_name_prefix="context-call"),
            options=server_options(),
            interceptors=[RefuseUnreadable()],
            maximum_concurrent_rpcs=num_threads,
        )
        context_pb2_grpc.add_ContextServiceServicer_to_server(ContextServicer(shard, trace=trace), self._server)
        self._introspection = Introspection(self._server, (SERVICE_NAME,), watched=(SERVICE_NAME,))

    @property
    def address(self) -> str:
        """host:port listened on."""
        return address_of(self.host, self.port)

    def start(self) -> None:
        """Listen and serve.

        Raises:
            PortTaken: another process listens there, or it is no address of this machine.
            BadConfig: the port is none.
        """
        self.port = listen(self._server, self.host, self.port, self._identity)
        self._introspection.tell(is_serving=True)
        self._server.start()

    def stop(self) -> None:
        """End every stream: routers compute what was here again elsewhere. Idempotent."""
        self._server.stop(0).wait()
        self.shard.close()
