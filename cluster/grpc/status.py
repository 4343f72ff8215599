"""Turns what a method of the front door raises into the status that Ray Serve's gRPC proxy sends."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar

from ray.serve.grpc_util import RayServegRPCContext

from protos.errors import InternalError, ServingError

_LOG = logging.getLogger(__name__)

Response = TypeVar("Response")


async def answer_once(
    answer: Awaitable[Response], context: RayServegRPCContext, empty: Callable[[], Response]
) -> Response:
    """Return a method's answer, or an empty one beside its error's status."""
    try:
        return await answer
    except Exception as error:  # noqa: BLE001  a process boundary
        _set_status(error, context)
        return empty()


async def answer_stream(
    answers: AsyncGenerator[Response, None], context: RayServegRPCContext, empty: Callable[[], Response]
) -> AsyncGenerator[Response, None]:
    """Yield a method's answers, then if it fails an empty one beside the status; the proxy drops that one."""
    try:
        async with aclosing(answers):
            async for answer in answers:
                yield answer
    except Exception as error:  # noqa: BLE001  a process boundary
        _set_status(error, context)
        yield empty()


def _set_status(error: Exception, context: RayServegRPCContext) -> None:
    if not isinstance(error, ServingError):
        _LOG.error("call failed", exc_info=error)
        error = InternalError("the server failed on this call; its log says why, please report it")
    context.set_code(error.grpc_code)
    context.set_details(error.message)
    context.set_trailing_metadata(list(error.trailing_metadata()))
