"""Ports, sockets, description, health, reflection, draining."""

from __future__ import annotations

import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from experts.server import SERVICE_NAME, ExpertServer
from protos import errors
from protos.channel import channel_options
from protos.expert.v1 import expert_pb2, expert_pb2_grpc
from tests.experts.replica_client import WAIT_S, dispatch_of, outputs_of, wait_until

HIDDEN_ND = torch.randn(80, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def channel():
    """Open channels that are closed after the test."""
    channels: list[grpc.Channel] = []

    def open_channel(address: str) -> grpc.Channel:
        channels.append(grpc.insecure_channel(address, options=channel_options()))
        return channels[-1]

    yield open_channel
    for opened in channels:
        opened.close()


def test_describe_counts_tokens_by_expert(serve, connect, channel):
    server = serve()
    client = connect(server.address)
    client.ask(dispatch_of(HIDDEN_ND[:5], {0: 1, 3: 4}))
    client.ask(dispatch_of(HIDDEN_ND[:2], {3: 2}, layer=3))
    told = expert_pb2_grpc.ExpertServiceStub(channel(server.address)).Describe(
        expert_pb2.DescribeRequest(), timeout=WAIT_S
    )
    assert dict(zip(told.expert_ids, told.expert_tokens, strict=True)) == {0: 1, 1: 0, 3: 6}
    assert told.load.total_tokens == 7
    assert not told.draining


@pytest.mark.parametrize("package", ["grpc_health.v1", "grpc_reflection.v1alpha"])
def test_experts_are_served_where_grpc_came_without_its_packages(serve, connect, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    server = serve()
    assert outputs_of(connect(server.address).ask(dispatch_of(HIDDEN_ND[:2], {0: 2}))).shape == (2, 32)
    assert server.stop(WAIT_S)


def test_health_and_reflection_answer(serve, channel):
    opened = channel(serve().address)
    health = health_pb2_grpc.HealthStub(opened)
    for name in ("", SERVICE_NAME):
        status = health.Check(health_pb2.HealthCheckRequest(service=name), timeout=WAIT_S).status
        assert status == health_pb2.HealthCheckResponse.SERVING
    assert SERVICE_NAME == "herd.expert.v1.ExpertService"
    assert SERVICE_NAME in ProtoReflectionDescriptorDatabase(opened).get_services()


def test_draining_answers_what_was_accepted_then_ends_streams(serve, connect, channel, held):
    held.gate.clear()
    server = serve()
    busy, idle = connect(server.address), connect(server.unix_address)
    busy.send(dispatch_of(HIDDEN_ND, {0: 80}))
    held.begun.get(timeout=WAIT_S)
    opened = channel(server.address)
    draining = expert_pb2_grpc.ExpertServiceStub(opened).Drain.future(expert_pb2.DrainRequest(), timeout=WAIT_S)
    wait_until(lambda: server.replica.batcher.is_draining)
    refused = busy.ask(dispatch_of(HIDDEN_ND[:1], {0: 1}, dispatch_id=2))
    assert isinstance(errors.from_detail(refused.error.detail), errors.Draining)
    held.gate.set()
    assert outputs_of(busy.next()).shape == (80, 32)
    for client in (busy, idle):
        failure = client.end()
        assert failure.code() == grpc.StatusCode.UNAVAILABLE
        assert isinstance(errors.from_rpc_error(failure, "replica"), errors.Draining)
    assert draining.result(WAIT_S) == expert_pb2.DrainResponse(drained=True, remaining=0)


def test_drain_tells_what_is_left_at_its_deadline(serve, connect, channel, held):
    held.gate.clear()
    server = serve()
    client = connect(server.address)
    client.send(dispatch_of(HIDDEN_ND, {0: 80}))
    held.begun.get(timeout=WAIT_S)
    stub = expert_pb2_grpc.ExpertServiceStub(channel(server.address))
    assert stub.Drain(expert_pb2.DrainRequest(), timeout=1) == expert_pb2.DrainResponse(drained=False, remaining=1)
    assert stub.Describe(expert_pb2.DescribeRequest(), timeout=WAIT_S).draining
    held.gate.set()
    assert stub.Drain(expert_pb2.DrainRequest(), timeout=WAIT_S).drained
    assert outputs_of(client.next()).shape == (80, 32)


def test_drained_replica_takes_no_new_streams(serve, connect):
    server = serve()
    server.drain(WAIT_S)
    with pytest.raises(AssertionError, match="drains: connect"):
        connect(server.address)


def test_stopping_gives_accepted_dispatches_their_answers(serve, connect, held):
    held.gate.clear()
    server = serve()
    client = connect(server.address)
    client.send(dispatch_of(HIDDEN_ND, {0: 80}))
    held.begun.get(timeout=WAIT_S)
    with ThreadPoolExecutor(1) as pool:
        stopping = pool.submit(server.stop, WAIT_S)
        held.gate.set()
        assert stopping.result(WAIT_S)
    assert outputs_of(client.next()).shape == (80, 32)


def test_stopping_frees_port_socket_and_threads(held, tmp_path):
    before = set(threading.enumerate())
    server = ExpertServer(held, unix_path=tmp_path / "replica.sock")
    server.start()
    assert (tmp_path / "replica.sock").is_socket()
    server.stop()
    assert not (tmp_path / "replica.sock").exists()
    with socket.create_server(("127.0.0.1", server.port)):
        pass
    left = {thread.name for thread in set(threading.enumerate()) - before}
    assert not {name for name in left if name.startswith("experts-compute")}


def test_taken_port_is_refused(serve, held):
    with pytest.raises(errors.PortTaken, match=str(port := serve().port)):
        ExpertServer(held, port=port).start()


@pytest.mark.parametrize("host", ["nosuchhost.invalid", "203.0.113.1"])
def test_address_of_another_machine_is_refused(held, host):
    with pytest.raises(errors.PortTaken, match="this machine's address"):
        ExpertServer(held, host=host).start()


def test_ipv6_address_can_be_dialled(held, connect):
    server = ExpertServer(held, host="::1")
    server.start()
    assert server.address == f"[::1]:{server.port}"
    assert outputs_of(connect(server.address).ask(dispatch_of(HIDDEN_ND[:1], {0: 1}))).shape == (1, 32)
    server.stop()


def test_socket_of_a_living_server_is_not_taken(serve, held):
    server = serve()
    path = Path(server.unix_address.removeprefix("unix:"))
    before = set(threading.enumerate())
    with pytest.raises(errors.PortTaken, match=r"replica\.sock"):
        ExpertServer(held, unix_path=path).start()
    assert path.is_socket()
    assert not [t for t in set(threading.enumerate()) - before if t.name == "experts-compute"]


def test_socket_a_dead_server_left_is_replaced(held, tmp_path, connect):
    path = tmp_path / "replica.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    server = ExpertServer(held, unix_path=path)
    server.start()
    assert outputs_of(connect(server.unix_address).ask(dispatch_of(HIDDEN_ND[:1], {0: 1}))).shape == (1, 32)
    server.stop()


@pytest.mark.parametrize(
    ("make_path", "words"),
    [
        (lambda folder: folder / ("s" * 120), "at most 107 bytes"),
        (lambda folder: folder / "missing" / "s", "existing folder"),
        (lambda folder: folder, "something else"),
    ],
)
def test_unusable_socket_path_is_refused(held, tmp_path, make_path, words):
    with pytest.raises(errors.BadConfig, match=words):
        ExpertServer(held, unix_path=make_path(tmp_path)).start()
