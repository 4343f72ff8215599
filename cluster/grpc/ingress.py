"""Registers our services in Ray Serve's gRPC proxy, in its process. Ray Serve takes these functions' import paths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from ray.serve._private.grpc_util import gRPCGenericServer
from ray.serve._private.proxy_request_response import gRPCStreamingType

from cluster.grpc.stream import corrected_stream
from protos.inference.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server


def add_inference_service(servicer: object, server: gRPCGenericServer) -> None:
    """Register herd.inference.v1.InferenceService."""
    _add(add_InferenceServiceServicer_to_server, servicer, server)


def add_health_service(servicer: object, server: gRPCGenericServer) -> None:
    """Register grpc.health.v1.Health."""
    _add(add_HealthServicer_to_server, servicer, server)


def _add(add_to_server: Callable[[Any, Any], None], servicer: object, server: gRPCGenericServer) -> None:
    """Register a service while the server's handlers are made with our correction."""
    make_handler = server.service_handler_factory

    def make_corrected_handler(service_method: str, streaming_type: gRPCStreamingType) -> Callable[..., Any]:
        handler: Callable[..., Any] = make_handler(service_method=service_method, streaming_type=streaming_type)
        return corrected_stream(handler) if streaming_type == gRPCStreamingType.UNARY_STREAM else handler

    server.service_handler_factory = make_corrected_handler
    try:
        add_to_server(servicer, server)
    finally:
        server.service_handler_factory = make_handler
