"""The gRPC service on a grpc.aio server in this process: for single-process use and tests. Ray Serve has its own."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable
from contextlib import aclosing
from typing import Any, NoReturn, TypeVar

import grpc

from cluster.grpc.api import GrpcApi
from protos.errors import InternalError, ServingError
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1.inference_pb2_grpc import InferenceServiceServicer, add_InferenceServiceServicer_to_server

_LOG = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Response = TypeVar("Response")


def add_to_server(api: GrpcApi, server: grpc.aio.Server) -> None:
    """Serve the API on a server of this event loop."""
    add_InferenceServiceServicer_to_server(_Servicer(api), server)


class _Servicer(InferenceServiceServicer):
    """Turns errors into a status; grpc.aio cancels a method when its caller has gone."""

    def __init__(self, api: GrpcApi) -> None:
        self._api = api

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        try:
            async with aclosing(self._api.generate(request, context.time_remaining())) as responses:
                async for response in responses:
                    yield response
        except Exception as error:  # noqa: BLE001  a process boundary
            await _abort(error, context)

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        return await _answer(self._api.tokenize(request), context)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        return await _answer(self._api.list_models(), context)

    async def GetServerInfo(self, request: pb.GetServerInfoRequest, context: Context) -> pb.GetServerInfoResponse:
        return await _answer(self._api.get_server_info(), context)

    async def GetLoad(self, request: pb.GetLoadRequest, context: Context) -> pb.GetLoadResponse:
        return await _answer(self._api.get_load(), context)


async def _answer(answer: Awaitable[Response], context: Context) -> Response:
    try:
        return await answer
    except Exception as error:  # noqa: BLE001  a process boundary
        await _abort(error, context)


async def _abort(error: Exception, context: Context) -> NoReturn:
    if not isinstance(error, ServingError):
        _LOG.error("call failed", exc_info=error)
        error = InternalError("the server failed on this call; its log says why, please report it")
    await context.abort(error.grpc_code, error.message, error.trailing_metadata())
    raise AssertionError("abort raises")
