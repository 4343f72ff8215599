"""Router and expert replicas that show each other certificates; strangers get in on neither side."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from dataclasses import replace

import grpc
import pytest
import torch

from context.__main__ import main as run_context
from experts.__main__ import main as run_experts
from experts.peer_source import PeerSource
from experts.server import ExpertServer
from experts.weights import ExpertWeights
from models.checkpoint import open_checkpoint
from protos import watched_files
from protos.channel import PEER_NAME, channel_options, open_channel
from protos.expert.v1 import expert_pb2, expert_pb2_grpc
from protos.tls import Identity, TlsFiles
from router.context_shards.shards import ContextShards
from router.context_shards.stream import ShardHolder
from router.placement import ExpertHolder, Placement
from router.transport.grpc import GrpcTransport
from tests.certificates import Authority
from tests.parity.transports import bare_process, ready_line

READY_S = 20
REFUSED_S = 0.3


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


def identity(authority: Authority, name: str, *, days: float = 1, hosts=(PEER_NAME,)) -> Identity:
    signed = authority.sign(name, days=days, hosts=hosts)
    return Identity(TlsFiles(cert=signed.cert, key=signed.key, ca=authority.ca))


@pytest.fixture
def weights(tiny_folder):
    return ExpertWeights.load(open_checkpoint(tiny_folder), range(4), torch.float32)


@contextmanager
def serving(weights, shown: Identity | None, unix_path=None):
    server = ExpertServer(weights, identity=shown, unix_path=unix_path)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def connects(server: ExpertServer, shown: Identity | None, timeout_s: float) -> bool:
    return reaches(server.address, server.replica.held.fingerprint, shown, timeout_s)


def reaches(address: str, fingerprint: str, shown: Identity | None, timeout_s: float) -> bool:
    """Tell whether a router gets a stream over TCP to a replica that holds all experts."""
    transport = GrpcTransport(router_id="test", fingerprint=fingerprint, identity=shown)
    holder = ExpertHolder(replica_id="replica", address=address, host="elsewhere", expert_ids=(0, 1, 2, 3))
    transport.update(Placement(version=1, holders=(holder,)))
    try:
        return transport.wait_ready(range(4), timeout_s)
    finally:
        transport.close()


def test_a_router_and_a_replica_of_one_authority_connect(weights, authority):
    with serving(weights, identity(authority, "replica")) as server:
        assert connects(server, identity(authority, "router"), READY_S)


def test_nobody_connects_without_a_certificate_of_the_authority(weights, authority, tmp_path):
    stranger = Authority(tmp_path, "stranger")
    believing = replace(identity(stranger, "other")._files, ca=authority.ca)
    with serving(weights, identity(authority, "replica")) as server:
        assert not connects(server, None, REFUSED_S)
        assert not connects(server, Identity(believing), REFUSED_S)
        assert not connects(server, identity(authority, "late", days=-1), REFUSED_S)


@pytest.mark.parametrize("fault", ["plain", "stranger", "expired", "other name"])
def test_a_router_sends_nothing_to_a_replica_it_does_not_believe(weights, authority, tmp_path, fault):
    shown = {
        "plain": lambda: None,
        "stranger": lambda: identity(Authority(tmp_path, "stranger"), "replica"),
        "expired": lambda: identity(authority, "replica", days=-1),
        "other name": lambda: identity(authority, "replica", hosts=("door",)),
    }[fault]()
    with serving(weights, shown) as server:
        assert not connects(server, identity(authority, "router"), REFUSED_S)


def test_weights_are_copied_over_tls(weights, authority, tiny_folder):
    with serving(weights, identity(authority, "replica")) as server:
        source = PeerSource(
            server.address, open_checkpoint(tiny_folder), torch.float32, identity=identity(authority, "new")
        )
        copied = ExpertWeights.load(source, [1], torch.float32)
        assert source.fetched_bytes > 0
    hidden_ND = torch.randn(2, weights.config.hidden_size)
    assert torch.equal(copied.run(1, hidden_ND, [1], [2]), weights.run(1, hidden_ND, [1], [2]))


def test_a_unix_socket_stays_plain(weights, authority, tmp_path):
    with serving(weights, identity(authority, "replica"), tmp_path / "socket") as server:
        with open_channel(server.unix_address, identity(authority, "router")) as channel:
            expert_pb2_grpc.ExpertServiceStub(channel).Describe(expert_pb2.DescribeRequest(), timeout=READY_S)
        with (
            grpc.insecure_channel(server.address, options=channel_options()) as channel,
            pytest.raises(grpc.RpcError),
        ):
            expert_pb2_grpc.ExpertServiceStub(channel).Describe(expert_pb2.DescribeRequest(), timeout=READY_S)


def test_a_router_that_connects_again_shows_what_was_rotated_meanwhile(weights, authority, tmp_path, monkeypatch):
    monkeypatch.setattr(watched_files, "_LOOK_EVERY_S", 0)
    router, replica = identity(authority, "router"), identity(authority, "replica")
    new = Authority(tmp_path, "new")
    with serving(weights, replica) as server:
        assert connects(server, router, READY_S)
        for name in ("router", "replica"):
            new.sign(name, hosts=(PEER_NAME,))
        authority.ca.write_bytes(new.ca.read_bytes())
        assert connects(server, router, READY_S)


def options_of(authority: Authority, name: str) -> list[str]:
    signed = authority.sign(name, hosts=(PEER_NAME,))
    return ["--tls-ca", str(authority.ca), "--tls-cert", str(signed.cert), "--tls-key", str(signed.key)]


def test_bare_processes_show_certificates_and_ask_for_them(tiny_folder, authority):
    asked = ["--checkpoint", str(tiny_folder), "--threads", "1"]
    router = identity(authority, "router")
    with ExitStack() as stack:
        first, first_line = stack.enter_context(bare_process(run_experts, asked + options_of(authority, "replica")))
        shard, shard_line = stack.enter_context(
            bare_process(run_context, [*asked, "--kv-bytes", "1000000", *options_of(authority, "shard")])
        )
        replica, held = ready_line(first_line), ready_line(shard_line)
        fingerprint = replica["model_fingerprint"]
        assert reaches(replica["address"], fingerprint, router, READY_S)
        assert not reaches(replica["address"], fingerprint, None, REFUSED_S)
        for shown, is_let_in in ((router, True), (None, False)):
            shards = ContextShards(router_id="r", fingerprint=fingerprint, segment_tokens=8, identity=shown)
            shards.update([ShardHolder(held["shard_id"], held["address"])])
            assert shards.wait_ready(1, READY_S if is_let_in else REFUSED_S) == is_let_in
            shards.close()
        copying = [*asked, "--from-peer", replica["address"], *options_of(authority, "second")]
        second, second_line = stack.enter_context(bare_process(run_experts, copying))
        assert ready_line(second_line)["fetched_bytes"] > 0
        for process in (first, shard, second):
            process.terminate()
            process.join(READY_S)
            assert process.exitcode == 0


@pytest.mark.parametrize(("main", "name"), [(run_experts, "experts"), (run_context, "context")])
def test_wrong_tls_options_are_one_line_and_exit_2(tiny_folder, authority, capsys, main, name):
    asked = ["--checkpoint", str(tiny_folder), *(["--kv-bytes", "1000000"] if main is run_context else [])]
    options = options_of(authority, "replica")
    assert main([*asked, *options[:2]]) == 2
    assert main([*asked, *options[:-1], str(authority.ca)]) == 2
    some, unusable = capsys.readouterr().err.splitlines()
    assert some.startswith(f"{name}: --tls-ca, --tls-cert, --tls-key: expected all or none, found no --tls-cert and no")
    assert unusable.startswith(f"{name}: expected a certificate in PEM, its key")
