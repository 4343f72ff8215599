"""Messages that cannot be parsed, refused as the sender's fault: gRPC itself calls that INTERNAL, which is ours."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from protos.errors import InvalidRequest

Parse = Callable[[bytes], Any]


class Unreadable:
    """What stands for a message that could not be parsed."""


UNREADABLE = Unreadable()


def or_unreadable(parse: Parse | None) -> Parse | None:
    """Return a parser that answers UNREADABLE where another one fails."""
    if parse is None:
        return None

    def parse_or_unreadable(data: bytes) -> Any:
        try:
            return parse(data)
        except DecodeError:
            return UNREADABLE

    return parse_or_unreadable


def _with_checks(handler: Any) -> Any:
    """Return a handler that parses more leniently and looks at what came of it; None: there is no such method."""
    if handler is None:
        return None
    forms = {"request_deserializer": or_unreadable(handler.request_deserializer)}
    forms["response_serializer"] = handler.response_serializer
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(_checked(handler.unary_unary), **forms)
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(_checked(handler.unary_stream), **forms)
    if handler.stream_stream:
        return grpc.stream_stream_rpc_method_handler(_checked_stream(handler.stream_stream), **forms)
    return handler


def refusal() -> InvalidRequest:
    """Return what the sender is told."""
    return InvalidRequest("expected a message as the service's .proto defines it, found other bytes; compare versions")


def readable(requests: Iterable[Any]) -> Iterator[Any]:
    """Yield a stream's messages.

    Raises:
        InvalidRequest: one could not be parsed.
    """
    for request in requests:
        if request is UNREADABLE:
            raise refusal()
        yield request


class RefuseUnreadable(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """For servers with threads: ends calls whose messages cannot be parsed as INVALID_ARGUMENT.

    A stream's method gets `InvalidRequest` from its iterator.
    """

    def intercept_service(self, continuation: Callable[..., Any], details: Any) -> Any:
        """Return the method's handler, which parses more leniently and looks at what came of it."""
        return _with_checks(continuation(details))


def _checked(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)  # with the attributes that gRPC looks at
    def answer(request: Any, context: grpc.ServicerContext, *rest: Any) -> Any:
        if request is UNREADABLE:
            error = refusal()
            context.set_trailing_metadata(error.trailing_metadata())
            context.abort(error.grpc_code, error.message)
        return method(request, context, *rest)

    return answer


def _checked_stream(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def answer(requests: Iterator[Any], *rest: Any) -> Any:
        return method(readable(requests), *rest)

    return answer
