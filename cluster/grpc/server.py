"""The gRPC services on a grpc.aio server: inference, health and reflection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Any, NoReturn, TypeVar

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthServicer, add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection

from cluster.auth.guard import Guard
from cluster.auth.quota import Caller
from cluster.grpc.api import GrpcApi
from cluster.grpc.authentication import Authentication, find_caller
from cluster.grpc.decoding import RefuseUnreadable
from cluster.grpc.health import GrpcHealth
from cluster.logs import fields
from cluster.request_id import HEADER, RequestId, request_id
from cluster.service import InferenceService
from protos.errors import InternalError, ServingError
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1.inference_pb2_grpc import InferenceServiceServicer, add_InferenceServiceServicer_to_server

_LOG = logging.getLogger(__name__)
MAX_STREAMS = 256
"""Most calls of one connection at once; clients hold more back until one has ended."""

Context = grpc.aio.ServicerContext[Any, Any]
Response = TypeVar("Response")


_SERVICES = (
    pb.DESCRIPTOR.services_by_name["InferenceService"].full_name,
    health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
    reflection.SERVICE_NAME,
)
_CONNECTION_OPTIONS = (
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.server_handshake_timeout_ms", 10_000),  # TLS, and HTTP/2's first frames; two minutes if nothing is said
    ("grpc.max_connection_idle_ms", 300_000),  # clients connect anew by themselves
    # Whether clients that say nothing are still there; two hours if nothing is said.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    # How often clients may ask the same of this server, calls or none: gRPC's own answer is five minutes.
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


def build_server(service: InferenceService, max_message_bytes: int, guard: Guard | None = None) -> grpc.aio.Server:
    """Return a server of this event loop, not started and without a port.

    Args:
        service: answers the calls.
        max_message_bytes: largest request; a longer one ends as RESOURCE_EXHAUSTED.
        guard: knows who may call; None: everybody may.
    """
    guard = guard or Guard(None)
    interceptors: list[Any] = [RefuseUnreadable(service.limits.body_timeout_s)]
    if not guard.is_open:
        interceptors.insert(0, Authentication(guard, lambda code: service.metrics.count_request("grpc", code)))
    options = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_allowed_incoming_connections", service.limits.max_connections),
        *_CONNECTION_OPTIONS,
    ]
    server = grpc.aio.server(options=options, interceptors=interceptors)
    add_InferenceServiceServicer_to_server(_Servicer(GrpcApi(service), guard), server)
    add_HealthServicer_to_server(_Health(GrpcHealth(service)), server)
    reflection.enable_server_reflection(_SERVICES, server)
    return server


class _Servicer(InferenceServiceServicer):
    """Turns errors into a status; grpc.aio cancels a method when its caller has gone."""

    def __init__(self, api: GrpcApi, guard: Guard) -> None:
        self._api = api
        self._guard = guard

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        # A client that reads no more holds up whoever sends to it: nobody looks at the request's deadline then.
        call = asyncio.current_task()
        assert call is not None
        end = asyncio.get_running_loop().call_later(self._api.longest_s, call.cancel)
        metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        name = request_id(metadata.get(HEADER))
        try:
            await context.send_initial_metadata(((HEADER, name.value),))
            caller, left_s = self._caller(context), context.time_remaining()
            async with aclosing(self._api.generate(request, left_s, name, metadata, caller)) as responses:
                async for response in responses:
                    yield response
        except Exception as error:  # noqa: BLE001  a process boundary
            await _abort(error, context, name)
        finally:
            end.cancel()

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        try:
            return await self._api.tokenize(request, self._caller(context))
        except Exception as error:  # noqa: BLE001  a process boundary
            await _abort(error, context)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return await _answer(self._api.list_models(), context)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        return await _answer(self._api.get_server_info(), context)

    async def GetLoad(self, request: pb.GetLoadRequest, context: Context) -> pb.GetLoadResponse:
        return await _answer(self._api.get_load(), context)

    def _caller(self, context: Context) -> Caller:
        return find_caller(self._guard, context.invocation_metadata())


class _Health(HealthServicer):  # type: ignore[misc]  # it has no types
    def __init__(self, health: GrpcHealth) -> None:
        self._health = health

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        return await _answer(self._health.check(request), context)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        try:
            async with aclosing(self._health.watch(request)) as statuses:
                async for status in statuses:
                    yield status
        except Exception as error:  # noqa: BLE001  a process boundary
            await _abort(error, context)


async def _answer(answer: Awaitable[Response], context: Context) -> Response:
    try:
        return await answer
    except Exception as error:  # noqa: BLE001  a process boundary
        await _abort(error, context)


async def _abort(error: Exception, context: Context, name: RequestId | None = None) -> NoReturn:
    if not isinstance(error, ServingError):
        _LOG.error("call failed", exc_info=error, extra=fields(request_id=name and name.value))
        error = InternalError("the server failed on this call; its log says why, please report it")
    await context.abort(error.grpc_code, error.message, error.trailing_metadata())
    raise AssertionError("abort raises")
