"""A small part of what benchmarks/malformed.py sends an expert replica, and frames that are no message at all."""

from __future__ import annotations

import random

import grpc
import pytest
import torch

from benchmarks.malformed import failures, send_frames
from experts.server import ExpertServer
from experts.weights import ExpertWeights
from models.checkpoint import open_checkpoint
from protos.channel import channel_options
from protos.expert.v1 import expert_pb2, expert_pb2_grpc
from tests.experts.replica_client import WAIT_S, wait_until

NUM = 120


@pytest.fixture
def server(tiny_folder):
    weights = ExpertWeights.load(open_checkpoint(tiny_folder), range(4), torch.float32)
    running = ExpertServer(weights)
    running.start()
    yield running
    running.stop()


def test_malformed_frames_are_the_senders_fault_and_good_ones_are_answered_after_them(server):
    held = server.replica.held
    counts = send_frames(server.address, held.fingerprint, held.config.hidden_size, NUM, random.Random(1))
    assert failures(counts) == 0, counts
    assert counts["INVALID_ARGUMENT"] > NUM // 3
    with grpc.insecure_channel(server.address, options=channel_options()) as channel:
        stub = expert_pb2_grpc.ExpertServiceStub(channel)
        assert not stub.Describe(expert_pb2.DescribeRequest(), timeout=WAIT_S).draining
    wait_until(lambda: server.num_streams == 0)


@pytest.mark.parametrize("method", ["ExpertService/Describe", "ExpertService/Drain"])
def test_bytes_that_are_no_message_do_nothing(server, method):
    with grpc.insecure_channel(server.address, options=channel_options()) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary(f"/herd.expert.v1.{method}")(b"\xff\xff\xff", timeout=WAIT_S)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert not server.replica.batcher.is_draining
