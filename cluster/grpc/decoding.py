"""Calls whose messages cannot be parsed: refused as the client's fault."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

import grpc

from protos.unreadable import UNREADABLE, refusal, with_checks

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]
    Interceptor = grpc.aio.ServerInterceptor[Any, Any]
    Context = grpc.aio.ServicerContext[Any, Any]
else:
    Interceptor = grpc.aio.ServerInterceptor


class RefuseUnreadable(Interceptor):
    """Ends calls whose messages cannot be parsed as INVALID_ARGUMENT."""

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]], details: grpc.HandlerCallDetails
    ) -> Handler:
        """Return the method's handler, which parses more leniently and looks at what came of it."""
        handler: Any = await continuation(details)
        checked: Handler = with_checks(handler, unary=_checked, answers=_checked_answers, stream=_checked_stream)
        return checked


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    async def answer(request: Any, context: Context) -> Any:
        if request is UNREADABLE:
            await _refuse(context)
        return await method(request, context)

    return answer


def _checked_answers(method: Callable[..., Any]) -> Callable[..., Any]:
    async def answer(request: Any, context: Context) -> AsyncIterator[Any]:
        if request is UNREADABLE:
            await _refuse(context)
        async with aclosing(method(request, context)) as responses:
            async for response in responses:
                yield response

    return answer


def _checked_stream(method: Callable[..., Any]) -> Callable[..., Any]:
    async def readable(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async for request in requests:
            if request is UNREADABLE:
                await _refuse(context)
            yield request

    async def answer(requests: AsyncIterator[Any], context: Context) -> AsyncIterator[Any]:
        async with aclosing(method(readable(requests, context), context)) as responses:
            async for response in responses:
                yield response

    return answer


async def _refuse(context: Context) -> None:
    error = refusal()
    await context.abort(error.grpc_code, error.message, error.trailing_metadata())
