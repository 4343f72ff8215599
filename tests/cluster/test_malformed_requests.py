"""A small part of what benchmarks/malformed.py sends: nothing of it is the server's fault, and good requests go on."""

from __future__ import annotations

import random
from urllib.parse import urlsplit

import grpc
import pytest

from benchmarks.malformed import failures, send_grpc, send_http
from benchmarks.page_requests import send_by_page
from protos import errors
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub
from tests.cluster.test_grpc_api import generate

NUM = 60
PAGE_NUM = 15


def test_malformed_http_is_refused_and_good_requests_are_answered_after_it(door):
    counts = send_http(urlsplit(door.url).port, NUM, random.Random(1))
    assert failures(counts) == 0, counts
    assert counts["HTTP 400"] > NUM // 3
    assert door.post("/v1/completions", {"prompt": "Hello", "max_tokens": 2})[0] == 200


def test_requests_by_the_openapi_page_are_answered_as_it_says(door):
    report = send_by_page(door.url, most_per_operation=PAGE_NUM, seed=1, has_boundaries=False)
    assert not report.failures, report.output
    assert report.num_operations == 7
    assert report.num_requests > 2 * PAGE_NUM
    assert door.post("/v1/completions", {"prompt": "Hello", "max_tokens": 2})[0] == 200


def test_malformed_grpc_is_refused_and_good_calls_are_answered_after_it(door):
    counts = send_grpc(door.grpc_address, NUM, random.Random(1))
    assert failures(counts) == 0, counts
    assert counts["INVALID_ARGUMENT"] > NUM // 3
    with grpc.insecure_channel(door.grpc_address) as channel:
        assert generate(InferenceServiceStub(channel), prompt="Hello")[-1].HasField("finished")


@pytest.mark.parametrize("method", ["Generate", "Tokenize", "GetLoad"])
def test_bytes_that_are_no_message_are_the_clients_fault(door, method):
    with grpc.insecure_channel(door.grpc_address) as channel:
        call = channel.unary_stream(f"/herd.inference.v1.InferenceService/{method}")
        with pytest.raises(grpc.RpcError) as caught:
            list(call(b"\xff\xff\xff", timeout=30))
    error = errors.from_rpc_error(caught.value, "herd")
    assert isinstance(error, errors.InvalidRequest)
    assert "proto" in error.message


def test_bytes_that_are_no_message_end_a_stream_of_questions(door):
    method = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    with grpc.insecure_channel(door.grpc_address) as channel, pytest.raises(grpc.RpcError) as caught:
        list(channel.stream_stream(method)(iter([b"\xff\xff\xff"]), timeout=30))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
