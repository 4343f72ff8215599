"""What tools ask of every gRPC server: whether it is well (grpc.health.v1), and what it serves (reflection).

Both come in packages of their own. Where gRPC is there without them, the rest is served all the same.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import grpc

_LOG = logging.getLogger(__name__)


class Introspection:
    """Answers for a server's services.

    Args:
        server: not started yet.
        services: full names of the services it has besides.
        watched: those whose health is told; that of the whole server is told as well.
    """

    def __init__(self, server: grpc.Server, services: Sequence[str], watched: Sequence[str]) -> None:
        self._watched = ("", *watched)
        try:
            from grpc_health.v1 import health, health_pb2_grpc
            from grpc_reflection.v1alpha import reflection
        except ImportError as error:
            _LOG.warning("health and reflection are not served: %s; install Herd's requirements for them", error)
            self._health = None
            return
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = (*services, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)

    def tell(self, is_serving: bool) -> None:
        """Say from here on that the server takes calls, or that it does not."""
        if self._health is None:
            return
        from grpc_health.v1 import health_pb2

        status = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in self._watched:
            self._health.set(name, status)
