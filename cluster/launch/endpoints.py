"""Where a Herd answers, and whether it does yet."""

from __future__ import annotations

import socket
import ssl
from dataclasses import dataclass
from http.client import OK, HTTPConnection, HTTPSConnection

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
    has_tls: bool = False
    """Whether both are encrypted."""
    asks_for_certificate: bool = False
    """Whether clients need a certificate."""

    @property
    def http(self) -> str:
        """Return the address for HTTP clients on this machine."""
        host = "localhost" if self.http_host in _EVERY_INTERFACE else self.http_host
        return f"{'https' if self.has_tls else 'http'}://{host}:{self.http_port}"

    @property
    def grpc(self) -> str:
        """Return the address for gRPC clients on this machine."""
        return f"{'https://' if self.has_tls else ''}localhost:{self.grpc_port}"

    def answer(self) -> bool:
        """Tell whether both APIs answer that they serve. Blocks for some seconds at most.

        With TLS, one who asks HTTP knows enough: the same process serves both. Where clients need a certificate there
        is none to ask with, and open ports have to do.
        """
        if self.asks_for_certificate:
            return _listens(self.http_port) and _listens(self.grpc_port)
        if self.has_tls:
            return _listens(self.grpc_port) and self._http_serves()
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
        connection = self._connection()
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == OK
        except OSError:
            return False
        finally:
            connection.close()

    def _connection(self) -> HTTPConnection:
        host = self.http.partition("://")[2]
        if not self.has_tls:
            return HTTPConnection(host, timeout=_TIMEOUT_S)
        # The certificate is for the name that others call this machine: nothing secret is asked or told here.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return HTTPSConnection(host, timeout=_TIMEOUT_S, context=context)


def _listens(port: int) -> bool:
    try:
        with socket.create_connection(("localhost", port), timeout=_TIMEOUT_S):
            return True
    except OSError:
        return False
