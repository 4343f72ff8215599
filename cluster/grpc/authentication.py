"""Lets calls in whose key is known."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
from grpc_health.v1 import health_pb2

from cluster.auth.guard import Guard
from cluster.auth.quota import Caller
from cluster.pace import REFUSALS_PER_S, Pace
from protos.errors import ServingError
from protos.inference.v1 import inference_pb2 as pb

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]
    Interceptor = grpc.aio.ServerInterceptor[Any, Any]
else:
    Interceptor = grpc.aio.ServerInterceptor

_SERVICE = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
_OPEN = f"/{health_pb2.DESCRIPTOR.services_by_name['Health'].full_name}/"
"""What probes ask, which have no key."""
_FOR_ADMINS = frozenset({f"/{_SERVICE}/GetServerInfo", f"/{_SERVICE}/GetLoad"})


class Authentication(Interceptor):
    """A call without the key it takes ends here, nothing of its message read.

    Args:
        guard: knows the keys.
        on_refusal: told the name of the status that a call ends with here.
    """

    def __init__(self, guard: Guard, on_refusal: Callable[[str], None]) -> None:
        self._guard = guard
        self._on_refusal = on_refusal
        self._pace = Pace(REFUSALS_PER_S)

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]], details: grpc.HandlerCallDetails
    ) -> Handler:
        """Return the method's handler, or one that refuses."""
        if not details.method.startswith(_OPEN):
            try:
                find_caller(self._guard, details.invocation_metadata, for_admin=details.method in _FOR_ADMINS)
            except ServingError as error:
                self._on_refusal(error.grpc_code.name)
                return _refusal(error, self._pace)
        return await continuation(details)


def find_caller(guard: Guard, metadata: Iterable[Any] | None, *, for_admin: bool = False) -> Caller:
    """Return who makes a call.

    Raises:
        Unauthenticated: there is no key, or nobody has it.
        PermissionDenied: it takes an operator's key.
    """
    found = next((value for key, value in metadata or () if key == "authorization"), None)
    return guard.caller(found if isinstance(found, str) else None, for_admin=for_admin)


def _refusal(error: ServingError, pace: Pace) -> Handler:
    async def refuse(_: Any, context: grpc.aio.ServicerContext[Any, Any]) -> NoReturn:
        await pace.wait()
        await context.abort(error.grpc_code, error.message, error.trailing_metadata())
        raise AssertionError("abort raises")

    # Whatever the method is: this kind of handler waits for no message.
    return grpc.stream_unary_rpc_method_handler(refuse)
