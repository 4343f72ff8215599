"""A replica in this process, with real sockets."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from experts.batcher import BatcherLimits
from experts.server import ExpertServer, ServerLimits
from experts.weights import ExpertWeights
from models.checkpoint import open_checkpoint
from protos.expert.v1 import expert_pb2
from tests.experts.replica_client import WAIT_S, StreamClient
from tests.experts.replica_process import ReplicaProcess
from tests.experts.wide_model import write_wide
from tests.models.checkpoint_files import write_hf

HELD = (0, 1, 3)
# 64 tokens of the tiny model are computed where they are read; tests send 80 to have them wait.
BATCHER = BatcherLimits(inline_macs=64 * 3 * 32 * 24)


class GatedExperts(ExpertWeights):
    """Real experts behind a gate a test may close; says when a batch has begun."""

    gate: threading.Event
    begun: queue.SimpleQueue[tuple[int, tuple[int, ...]]]

    @classmethod
    def gated(cls, folder: Path) -> GatedExperts:
        held = cls.load(open_checkpoint(folder), HELD, torch.float32)
        held.gate, held.begun = threading.Event(), queue.SimpleQueue()
        held.gate.set()
        return held

    def run(self, layer, hidden_ND, expert_ids, token_counts):
        self.begun.put((layer, tuple(token_counts)))
        assert self.gate.wait(WAIT_S)
        return super().run(layer, hidden_ND, expert_ids, token_counts)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A model with D = 32 and 4 experts in layers 1 and 3."""
    return write_hf(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def wide_folder(tmp_path_factory) -> Iterator[Path]:
    """A model with 151 MB of routed experts, in 16 pairs of 9.4 MB."""
    folder = write_wide(tmp_path_factory.mktemp("wide"))
    yield folder
    (folder / "model.safetensors").unlink()


@pytest.fixture
def held(tiny_folder) -> GatedExperts:
    """Experts 0, 1 and 3 of the tiny model."""
    return GatedExperts.gated(tiny_folder)


@pytest.fixture
def serve(held, tmp_path) -> Iterator[Callable[..., ExpertServer]]:
    """Start a server for `held`, with some limits; it is stopped after the test."""
    servers: list[ExpertServer] = []

    def start(batcher=BATCHER, **limits) -> ExpertServer:
        limits = ServerLimits(batcher=batcher, **limits)
        server = ExpertServer(held, unix_path=tmp_path / "replica.sock", limits=limits)
        servers.append(server)
        server.start()
        return server

    yield start
    held.gate.set()
    for server in servers:
        server.stop()


@pytest.fixture
def connect(held) -> Iterator[Callable[..., StreamClient]]:
    """Open a stream to an address and take its welcome."""
    clients: list[StreamClient] = []

    def open_stream(address: str, *, router_id: str = "test") -> StreamClient:
        hello = expert_pb2.Hello(router_id=router_id, model_fingerprint=held.fingerprint)
        client = StreamClient(address, hello)
        clients.append(client)
        assert client.next().WhichOneof("message") == "welcome"
        return client

    yield open_stream
    for client in clients:
        client.close()


@pytest.fixture
def run() -> Iterator[Callable[..., ReplicaProcess]]:
    started: list[ReplicaProcess] = []

    def start(*arguments: object) -> ReplicaProcess:
        started.append(ReplicaProcess(*arguments))
        return started[-1]

    yield start
    for replica in started:
        replica.process.kill()
        replica.process.communicate()
