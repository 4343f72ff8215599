"""Where a Herd answers, and whether it does yet."""

from __future__ import annotations

import http.client
from dataclasses import dataclass

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_TIMEOUT_S = 2.0
_EVERY_INTERFACE = ("0.0.0.0", "::", "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoints:
    """The two addresses of a Herd on this machine."""

    http_host: str
    """As in the settings."""
    http_port: int
    """TCP port of the OpenAI API."""
    grpc_port: int
    """TCP port of the gRPC API."""

    @property
    def http(self) -> str:
        """Return the address for HTTP clients on this machine."""
        host = "localhost" if self.http_host in _EVERY_INTERFACE else self.http_host
        return f"http://{host}:{self.http_port}"

    @property
    def grpc(self) -> str:
        """Return the address for gRPC clients on this machine."""
        return f"localhost:{self.grpc_port}"

    def answer(self) -> bool:
        """Tell whether both APIs answer that they serve. Blocks for some seconds at most."""
        return self._grpc_serves() and self._http_serves()

    def _grpc_serves(self) -> bool:
        options = [("grpc.enable_http_proxy", 0)]
        with grpc.insecure_channel(self.grpc, options=options) as channel:
            try:
                answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=_TIMEOUT_S)
            except grpc.RpcError:
                return False
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _http_serves(self) -> bool:
        connection = http.client.HTTPConnection(self.http.removeprefix("http://"), timeout=_TIMEOUT_S)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        except OSError:
            return False
        finally:
            connection.close()
