"""Tensors through a card's memory, on a stand-in for NVIDIA's driver: the same answers, and a reason where not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import torch

from experts.server import ExpertServer
from protos import device_memory
from router.placement import ExpertHolder, Placement
from router.plan import plan_dispatch
from router.transport.grpc import GrpcTransport
from tests.models.checkpoint_files import write_hf
from tests.protos.cuda_stand_in import compile_stand_in, host_as_card, num_mapped
from tests.router.live_transport import WAIT_S, wait_until
from tests.router.scripted_replica import ScriptedReplica
from tests.router.test_shared_lane import TripledExperts

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the stand-in needs gcc")

WIDTH = 32
HERE = socket.gethostname()


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return str(compile_stand_in(tmp_path_factory.mktemp("stand-in")))


@pytest.fixture
def card(library, monkeypatch):
    """Take the host for a card, as each process of a test does."""
    with host_as_card(library, monkeypatch):
        yield library


@pytest.fixture
def replica(card, tmp_path):
    """A replica of a tiny model in a process of its own, which has the stand-in, too."""
    command = [sys.executable, "-m", "tests.protos.cuda_stand_in", card, "--checkpoint", write_hf(tmp_path)]
    process = subprocess.Popen(
        [*command, "--threads", "1", "--parent-pid", str(os.getpid())], stdout=subprocess.PIPE, text=True
    )
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)


@pytest.fixture
def connect():
    """Connect a transport to a replica: `connect(address, fingerprint, host=...)`."""
    transports = []

    def run(address, fingerprint="f00d", *, host=HERE, **settings) -> GrpcTransport:
        transport = GrpcTransport(router_id="test", fingerprint=fingerprint, **settings)
        transports.append(transport)
        holder = ExpertHolder(replica_id="far", address=address, host=host, expert_ids=(0, 1, 2, 3))
        transport.update(Placement(version=1, holders=(holder,)))
        assert transport.wait_ready(range(4), WAIT_S)
        return transport

    yield run
    for transport in transports:
        transport.close()


def outputs_of(transport: GrpcTransport, num_tokens: int) -> torch.Tensor:
    hidden_TD = torch.randn(num_tokens, WIDTH, generator=torch.Generator().manual_seed(num_tokens))
    ids_TK = torch.arange(num_tokens).remainder(4).reshape(-1, 1)
    plan = plan_dispatch(ids_TK, transport.assign)
    return transport.dispatch(1, plan, hidden_TD[plan.token_rows_N]).wait()


def test_tensors_of_every_size_go_through_the_card_and_the_outputs_are_those_sent_inline(replica, connect):
    process, ready = replica
    address, fingerprint = ready["address"], ready["model_fingerprint"]
    through_card = connect(address, fingerprint)
    inline = connect(address, fingerprint, share_from_bytes=None)
    assert through_card.health().lanes["far"] == ("cuda-ipc", "")
    assert inline.health().lanes["far"] == ("inline", "this router shares no memory")
    slots = through_card.stream("far").slots
    for num_tokens in (1, 7, 300):
        kept = slots.take(4096)
        assert torch.equal(outputs_of(through_card, num_tokens), outputs_of(inline, num_tokens))
        written = slots.segment.tensor(kept.offset + 4096, torch.float32, (num_tokens, WIDTH))
        assert torch.equal(written, outputs_of(inline, num_tokens))  # where the tokens had been
        del written
        kept.let_go()
    del slots, kept
    assert num_mapped(process.pid) == num_mapped() == 1
    through_card.stream("far").reset()  # whoever breaks the stream
    assert wait_until(lambda: through_card.stream("far").slots is not None)
    assert torch.equal(outputs_of(through_card, 3), outputs_of(inline, 3))
    through_card.close()
    assert wait_until(lambda: num_mapped(process.pid) == num_mapped() == 0)


def test_a_killed_replica_leaves_no_memory_taken(replica, connect, monkeypatch):
    monkeypatch.setattr(device_memory, "_UNMAP_S", 0.0)  # it does not come to say that it unmapped it
    process, ready = replica
    transport = connect(ready["address"], ready["model_fingerprint"])
    outputs_of(transport, 8)
    assert num_mapped() == 1
    process.send_signal(signal.SIGKILL)
    process.wait(WAIT_S)
    assert wait_until(lambda: not transport.stream("far").is_ready)
    assert "far" not in transport.health().lanes
    transport.close()
    assert wait_until(lambda: num_mapped() == 0)


def test_a_replica_that_cannot_map_it_says_why_and_gets_tensors_through_the_host(card, connect):
    server = ExpertServer(TripledExperts())  # in this process, and none maps its own memory
    server.start()
    transport = connect(server.address, share_from_bytes=1)
    lane, reason = transport.health().lanes["far"]
    assert lane == "shm"
    assert reason.startswith("cuIpcOpenMemHandle_v2 returned CUDA_ERROR_INVALID_CONTEXT")
    assert outputs_of(transport, 8).shape == (8, WIDTH)
    assert wait_until(lambda: num_mapped() == 0)
    server.stop()


def test_a_card_without_room_is_a_reason(card, connect, monkeypatch):
    monkeypatch.setattr(device_memory.DeviceSegment.create.__func__, "__defaults__", (2**40,))
    server = ExpertServer(TripledExperts())
    server.start()
    lane, reason = connect(server.address).health().lanes["far"]
    assert lane == "shm"
    assert "the card has no room" in reason
    server.stop()


@pytest.mark.parametrize(("host", "reason"), [("elsewhere", "another host"), (HERE, "older version")])
def test_a_replica_elsewhere_or_of_an_older_version_gets_tensors_in_messages(card, connect, host, reason):
    replica = ScriptedReplica("far", (0, 1, 2, 3))
    transport = connect(replica.holder.address, host=host)
    lane, found = transport.health().lanes["far"]
    assert lane == "inline"
    assert reason in found
    assert replica.hellos[0].HasField("device_memory") == (host != "elsewhere")
    assert outputs_of(transport, 8).shape == (8, WIDTH)
    transport.close()
    replica.stop()


def test_a_router_on_a_cpu_offers_memory_of_the_host_and_misses_nothing(connect):
    server = ExpertServer(TripledExperts())
    server.start()
    assert connect(server.address).health().lanes["far"] == ("shm", "")
    server.stop()
