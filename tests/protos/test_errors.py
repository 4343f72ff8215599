"""The error tree: every kind has its codes, and survives the wire and a process boundary."""

from __future__ import annotations

import pickle

import grpc
import pytest

from protos import errors

KINDS = sorted(errors.error_kinds(), key=lambda kind: kind.reason)

CODES = {
    "BAD_CHECKPOINT": (500, "FAILED_PRECONDITION", False),
    "BAD_CONFIG": (500, "FAILED_PRECONDITION", False),
    "BAD_DISPATCH": (400, "INVALID_ARGUMENT", False),
    "BAD_TENSOR": (400, "INVALID_ARGUMENT", False),
    "CANCELLED": (499, "CANCELLED", False),
    "CONTEXT_TOO_LONG": (400, "INVALID_ARGUMENT", False),
    "DEADLINE_EXCEEDED": (504, "DEADLINE_EXCEEDED", False),
    "DRAINING": (503, "UNAVAILABLE", True),
    "IMPORT_SHADOWED": (500, "FAILED_PRECONDITION", False),
    "INTERNAL": (500, "INTERNAL", False),
    "INVALID_API_KEY": (401, "UNAUTHENTICATED", False),
    "INVALID_REQUEST": (400, "INVALID_ARGUMENT", False),
    "MODEL_MISMATCH": (503, "FAILED_PRECONDITION", False),
    "NOT_ENOUGH_MEMORY": (500, "FAILED_PRECONDITION", False),
    "NOT_FOUND": (404, "NOT_FOUND", False),
    "NO_REPLICA": (503, "UNAVAILABLE", True),
    "OVERLOADED": (429, "RESOURCE_EXHAUSTED", True),
    "PAYLOAD_TOO_LARGE": (413, "INVALID_ARGUMENT", False),
    "PERMISSION_DENIED": (403, "PERMISSION_DENIED", False),
    "RATE_LIMIT_EXCEEDED": (429, "RESOURCE_EXHAUSTED", True),
    "REQUEST_TOO_SLOW": (408, "DEADLINE_EXCEEDED", True),
    "PORT_TAKEN": (500, "FAILED_PRECONDITION", False),
    "REPLICA_UNAVAILABLE": (503, "UNAVAILABLE", True),
    "STALE_PLACEMENT": (503, "FAILED_PRECONDITION", True),
    "CONTEXT_LOST": (503, "FAILED_PRECONDITION", True),
}


def test_every_kind_has_the_codes_of_the_table():
    found = {kind.reason: (kind.http_status, kind.grpc_code.name, kind.retryable) for kind in KINDS}
    assert found == CODES


def test_no_two_kinds_share_a_reason():
    assert len({kind.reason for kind in KINDS}) == len(KINDS)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.reason)
def test_an_error_survives_the_wire_and_a_process_boundary(kind):
    error = kind("expected a, found b: do c", retry_after_ms=250, metadata={"found": "b"})
    for copy in (errors.from_detail(error.detail()), pickle.loads(pickle.dumps(error))):
        assert type(copy) is kind
        assert (copy.message, copy.retry_after_ms, copy.metadata) == (error.message, 250, {"found": "b"})


def test_an_unknown_reason_becomes_an_internal_error_with_the_peers_words():
    detail = errors.InvalidRequest("from the future").detail()
    detail.reason = "NOT_YET_INVENTED"
    copy = errors.from_detail(detail)
    assert type(copy) is errors.InternalError
    assert copy.message == "from the future"


def test_a_call_to_nobody_becomes_replica_unavailable():
    with grpc.insecure_channel("127.0.0.1:1") as channel, pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary("/none")(b"", timeout=5)
    error = errors.from_rpc_error(failed.value, "replica r1")
    assert type(error) is errors.ReplicaUnavailable
    assert "replica r1" in error.message


class Refusal(grpc.RpcError):
    """A failed call whose server is not ours."""

    def trailing_metadata(self):
        return ((errors.ERROR_METADATA_KEY, b"\xff no detail"),)

    def code(self):
        return grpc.StatusCode.UNAVAILABLE

    def details(self):
        return "go away"


def test_a_detail_that_cannot_be_read_leaves_the_status_code_to_speak():
    error = errors.from_rpc_error(Refusal(), "replica r1")
    assert type(error) is errors.ReplicaUnavailable
    assert "go away" in error.message
