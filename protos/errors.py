"""The only error tree: what can go wrong between Herd's processes and what a caller can do about it.

ServingError
├── RequestError            the caller's request is at fault
│   ├── InvalidRequest      400 / INVALID_ARGUMENT
│   ├── ContextTooLong      400 / INVALID_ARGUMENT
│   ├── PayloadTooLarge     413 / INVALID_ARGUMENT
│   ├── RequestTooSlow      408 / DEADLINE_EXCEEDED, retry
│   ├── NotFound            404 / NOT_FOUND
│   ├── Unauthenticated     401 / UNAUTHENTICATED
│   ├── PermissionDenied    403 / PERMISSION_DENIED
│   ├── RateLimited         429 / RESOURCE_EXHAUSTED, retry later
│   └── Overloaded          429 / RESOURCE_EXHAUSTED, retry later
├── ReplicaError            a part of the cluster is missing, late or out of date
│   ├── NoReplica           503 / UNAVAILABLE, retry
│   ├── ReplicaUnavailable  503 / UNAVAILABLE, retry
│   ├── Draining            503 / UNAVAILABLE, retry elsewhere
│   ├── StalePlacement      503 / FAILED_PRECONDITION, retry after a refresh
│   ├── ContextLost         503 / FAILED_PRECONDITION, retry after writing it again
│   ├── ModelMismatch       503 / FAILED_PRECONDITION
│   ├── DeadlineExceeded    504 / DEADLINE_EXCEEDED
│   └── Cancelled           499 / CANCELLED
├── WireError               bytes that do not say what they should
│   ├── BadTensor           400 / INVALID_ARGUMENT
│   └── BadDispatch         400 / INVALID_ARGUMENT
├── StartupError            a start that cannot succeed
│   ├── BadConfig           500 / FAILED_PRECONDITION
│   ├── BadCheckpoint       500 / FAILED_PRECONDITION
│   ├── PortTaken           500 / FAILED_PRECONDITION
│   ├── NotEnoughMemory     500 / FAILED_PRECONDITION
│   └── ImportShadowed      500 / FAILED_PRECONDITION
└── InternalError           500 / INTERNAL: our bug, never retried blindly

A message has three parts: what was expected, what was found, what to do. `ErrorDetail` is built and parsed only
here; it crosses a process as trailing metadata (`ERROR_METADATA_KEY`) or inside a DispatchError.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import ClassVar

import grpc
from google.protobuf.message import DecodeError

from protos.error.v1.error_pb2 import ErrorDetail

ERROR_METADATA_KEY = "herd-error-bin"


class ServingError(Exception):
    """A failure Herd explains. Subclasses fix its class; the instance says what happened.

    Args:
        message: what was expected, what was found, what to do.
        retry_after_ms: how long to wait before trying again, in milliseconds; 0 means at once or not known.
        metadata: facts for programs.
    """

    http_status: ClassVar[int] = 500
    grpc_code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    reason: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, retry_after_ms: int = 0, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.metadata = dict(metadata or {})

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.message, self.retry_after_ms, self.metadata)

    def detail(self) -> ErrorDetail:
        """Return the wire form."""
        return ErrorDetail(
            reason=self.reason,
            retryable=self.retryable,
            retry_after_ms=self.retry_after_ms,
            message=self.message,
            metadata=self.metadata,
        )

    def trailing_metadata(self) -> tuple[tuple[str, bytes], ...]:
        """Return the metadata a gRPC server sends beside the status."""
        return ((ERROR_METADATA_KEY, self.detail().SerializeToString()),)


def _rebuild(kind: type[ServingError], message: str, retry_after_ms: int, metadata: Mapping[str, str]) -> ServingError:
    """Make the error again after it was pickled: keyword-only arguments need this."""
    return kind(message, retry_after_ms=retry_after_ms, metadata=metadata)


class RequestError(ServingError):
    """The caller's request is at fault; another one can succeed."""


class InvalidRequest(RequestError):
    """A field is missing, out of range or contradicts another."""

    http_status = 400
    grpc_code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_REQUEST"


class ContextTooLong(RequestError):
    """Prompt and output do not fit the model's context."""

    http_status = 400
    grpc_code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "CONTEXT_TOO_LONG"


class PayloadTooLarge(RequestError):
    """The request's bytes exceed the limit."""

    http_status = 413
    grpc_code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "PAYLOAD_TOO_LARGE"


class RequestTooSlow(RequestError):
    """The request's bytes did not come in time."""

    http_status = 408
    grpc_code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "REQUEST_TOO_SLOW"
    retryable = True


class NotFound(RequestError):
    """No model or route of that name."""

    http_status = 404
    grpc_code = grpc.StatusCode.NOT_FOUND
    reason = "NOT_FOUND"


class Unauthenticated(RequestError):
    """No API key, or none of this server's."""

    http_status = 401
    grpc_code = grpc.StatusCode.UNAUTHENTICATED
    reason = "INVALID_API_KEY"


class PermissionDenied(RequestError):
    """An API key that may not do this."""

    http_status = 403
    grpc_code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"


class RateLimited(RequestError):
    """An API key's quota is used up; the same request can succeed later."""

    http_status = 429
    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "RATE_LIMIT_EXCEEDED"
    retryable = True


class Overloaded(RequestError):
    """A queue is full; the same request can succeed later."""

    http_status = 429
    grpc_code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"
    retryable = True


class ReplicaError(ServingError):
    """A part of the cluster is missing, late or out of date."""


class NoReplica(ReplicaError):
    """No healthy replica holds what is needed."""

    http_status = 503
    grpc_code = grpc.StatusCode.UNAVAILABLE
    reason = "NO_REPLICA"
    retryable = True


class ReplicaUnavailable(ReplicaError):
    """A replica died or cannot be reached; another may answer."""

    http_status = 503
    grpc_code = grpc.StatusCode.UNAVAILABLE
    reason = "REPLICA_UNAVAILABLE"
    retryable = True


class Draining(ReplicaError):
    """A replica finishes what it has and takes nothing new."""

    http_status = 503
    grpc_code = grpc.StatusCode.UNAVAILABLE
    reason = "DRAINING"
    retryable = True


class StalePlacement(ReplicaError):
    """A replica does not hold what the sender's placement says."""

    http_status = 503
    grpc_code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "STALE_PLACEMENT"
    retryable = True


class ContextLost(ReplicaError):
    """Keys and values that a context shard was to hold are not there."""

    http_status = 503
    grpc_code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "CONTEXT_LOST"
    retryable = True


class ModelMismatch(ReplicaError):
    """Router and expert replica run different models."""

    http_status = 503
    grpc_code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "MODEL_MISMATCH"


class DeadlineExceeded(ReplicaError):
    """The time given for the answer has passed."""

    http_status = 504
    grpc_code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Cancelled(ReplicaError):
    """The caller went away."""

    http_status = 499
    grpc_code = grpc.StatusCode.CANCELLED
    reason = "CANCELLED"


class WireError(ServingError):
    """Bytes that do not say what they should."""

    http_status = 400
    grpc_code = grpc.StatusCode.INVALID_ARGUMENT


class BadTensor(WireError):
    """A tensor with the wrong dtype, shape or byte count."""

    reason = "BAD_TENSOR"


class BadDispatch(WireError):
    """A dispatch or stream that breaks the protocol: unknown layer, counts that do not add up, no hello."""

    reason = "BAD_DISPATCH"


class StartupError(ServingError):
    """A start that cannot succeed."""

    grpc_code = grpc.StatusCode.FAILED_PRECONDITION


class BadConfig(StartupError):
    """A setting or a model's configuration is unusable."""

    reason = "BAD_CONFIG"


class BadCheckpoint(StartupError):
    """A checkpoint is missing, truncated, corrupt or of an unknown layout."""

    reason = "BAD_CHECKPOINT"


class PortTaken(StartupError):
    """Another process listens on a port Herd was told to use."""

    reason = "PORT_TAKEN"


class NotEnoughMemory(StartupError):
    """The model does not fit the machine."""

    reason = "NOT_ENOUGH_MEMORY"


class ImportShadowed(StartupError):
    """Another project's package answers to the name of one of ours."""

    reason = "IMPORT_SHADOWED"


class InternalError(ServingError):
    """Our bug."""


def error_kinds() -> Iterator[type[ServingError]]:
    """Yield every concrete kind of error, each with its own reason."""
    pending: list[type[ServingError]] = [ServingError]
    while pending:
        kind = pending.pop()
        pending.extend(kind.__subclasses__())
        if not kind.__subclasses__():
            yield kind


def from_detail(detail: ErrorDetail) -> ServingError:
    """Return the error a peer sent; an unknown reason becomes InternalError with the peer's message."""
    kinds = {kind.reason: kind for kind in error_kinds()}
    kind = kinds.get(detail.reason, InternalError)
    return kind(detail.message, retry_after_ms=detail.retry_after_ms, metadata=dict(detail.metadata))


def from_rpc_error(error: grpc.RpcError, peer: str) -> ServingError:
    """Return what a failed call means: the detail its server sent, else what the status code tells.

    Args:
        error: as raised by a stub.
        peer: whom was called, for the message.
    """
    for key, value in getattr(error, "trailing_metadata", lambda: None)() or ():
        if key == ERROR_METADATA_KEY:
            with suppress(DecodeError):  # not of our making: then the status code is all there is
                return from_detail(ErrorDetail.FromString(value))
    code = getattr(error, "code", lambda: grpc.StatusCode.UNKNOWN)()
    said = f"{peer} answered {code.name}: {getattr(error, 'details', lambda: '')() or 'no details'}"
    by_code: dict[grpc.StatusCode, type[ServingError]] = {
        grpc.StatusCode.UNAVAILABLE: ReplicaUnavailable,
        grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
        grpc.StatusCode.CANCELLED: Cancelled,
        grpc.StatusCode.RESOURCE_EXHAUSTED: Overloaded,
        grpc.StatusCode.INVALID_ARGUMENT: InvalidRequest,
        grpc.StatusCode.NOT_FOUND: NotFound,
    }
    return by_code.get(code, InternalError)(said)
