"""Calls whose messages cannot be parsed, or do not come: refused as the client's fault."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any, NoReturn, cast

import grpc

from protos.errors import InvalidRequest, RequestTooSlow, ServingError
from protos.unreadable import UNREADABLE, or_unreadable, refusal

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]
    Interceptor = grpc.aio.ServerInterceptor[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Interceptor = grpc.aio.ServerInterceptor


class RefuseUnreadable(Interceptor):
    """Ends calls whose messages cannot be parsed as INVALID_ARGUMENT, those without one in time as DEADLINE_EXCEEDED.

    gRPC calls a method with one request when that has come, and waits for it without end. So it is given methods with
    a stream of requests, which look the same to clients, and the first request is awaited here.

    Args:
        message_s: seconds from a call's beginning to its first message.
    """

    def __init__(self, message_s: float) -> None:
        self._message_s = message_s

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]], details: grpc.HandlerCallDetails
    ) -> Handler:
        """Return the method's handler, which parses more leniently and looks at what came of it."""
        handler: Any = await continuation(details)
        if handler is None or handler.stream_unary:
            return cast("Handler", handler)  # there is no such method, or it is one that refuses
        checked: Handler
        forms = {"request_deserializer": or_unreadable(handler.request_deserializer)}
        forms["response_serializer"] = handler.response_serializer
        if handler.unary_unary:
            checked = grpc.stream_unary_rpc_method_handler(self._one_answer(handler.unary_unary), **forms)
        elif handler.unary_stream:
            answers = self._many_answers(handler.unary_stream, self._first)
            checked = grpc.stream_stream_rpc_method_handler(answers, **forms)
        else:
            answers = self._many_answers(handler.stream_stream, self._all)
            checked = grpc.stream_stream_rpc_method_handler(answers, **forms)
        return checked

    def _one_answer(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def answer(requests: AsyncIterator[Any], context: Context) -> Any:
            return await method(await self._first(requests, context), context)

        return answer

    def _many_answers(self, method: Callable[..., Any], read: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
        async def answer(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
            async with aclosing(method(await read(requests, context), context)) as responses:
                async for response in responses:
                    yield response

        return answer

    async def _first(self, requests: AsyncIterator[Any], context: Context) -> Any:
        """Return the first request, once it has come."""
        try:
            async with asyncio.timeout(self._message_s):
                request = await anext(requests, None)
        except TimeoutError:
            await _refuse(
                RequestTooSlow(
                    f"expected a message within {self._message_s:g} s, found none or a part of one; send it faster"
                ),
                context,
            )
        if request is None:
            await _refuse(InvalidRequest("expected a message, found none; send one"), context)
        if request is UNREADABLE:
            await _refuse(refusal(), context)
        return request

    async def _all(self, requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        """Return all requests, the first of which has come."""
        first = await self._first(requests, context)

        async def readable() -> AsyncIterator[Any]:
            yield first
            async for request in requests:
                if request is UNREADABLE:
                    await _refuse(refusal(), context)
                yield request

        return readable()


async def _refuse(error: ServingError, context: Context) -> NoReturn:
    await context.abort(error.grpc_code, error.message, error.trailing_metadata())
    raise AssertionError("abort raises")
