"""Experts that come and go while others run."""

from __future__ import annotations

import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from experts.server import ExpertServer
from experts.weights import ExpertWeights
from models.checkpoint import open_checkpoint
from protos import errors
from protos.expert.v1 import expert_pb2
from tests.experts.replica_client import WAIT_S, dispatch_of, outputs_of, wait_until

HIDDEN_ND = torch.randn(80, 32, generator=torch.Generator().manual_seed(1))
EXPERT_BYTES = 2 * (32 * 48 + 24 * 32) * 4


@pytest.fixture
def some(tiny_folder) -> ExpertWeights:
    """Experts 0 and 1 of the tiny model."""
    return ExpertWeights.load(open_checkpoint(tiny_folder), [0, 1], torch.float32)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_held_expert_runs_like_one_that_was_loaded(tiny_folder, some):
    loaded = ExpertWeights.load(open_checkpoint(tiny_folder), [0, 1, 3], torch.float32)
    some.hold([3])
    assert some.expert_ids == loaded.expert_ids == (0, 1, 3)
    assert some.weight_bytes == loaded.weight_bytes == 3 * EXPERT_BYTES
    assert some.loaded_bytes == loaded.loaded_bytes
    for layer in some.layers:
        arguments = (layer, HIDDEN_ND, [1, 3], [30, 50])
        assert torch.equal(some.run(*arguments), loaded.run(*arguments))


class FullFor:
    """A checkpoint on the way to a GPU that has no room for one expert."""

    def __init__(self, checkpoint, expert):
        self._checkpoint, self._expert = checkpoint, expert

    def __getattr__(self, name):
        return getattr(self._checkpoint, name)

    def read(self, name, dtype=None, memory=None):
        if f".experts.{self._expert}." in name:
            raise torch.OutOfMemoryError
        return self._checkpoint.read(name, dtype, memory)


def test_a_gpu_without_room_for_an_expert_is_told_and_what_was_held_stays(tiny_folder):
    some = ExpertWeights.load(FullFor(open_checkpoint(tiny_folder), 3), [0], torch.float32)
    with pytest.raises(errors.NotEnoughMemory, match="found it full"):
        some.hold([2, 3])
    assert some.expert_ids == (0, 2)
    some.hold([1])
    assert some.expert_ids == (0, 1, 2)


def test_the_table_of_a_layer_stays_as_it_was_when_experts_come(some):
    layer = some.layers[0]
    before = some.held_in(layer)
    some.hold([3])
    assert (sorted(before), sorted(some.held_in(layer))) == ([0, 1], [0, 1, 3])
    assert before[1] is some.held_in(layer)[1] is some.held_expert(1)[layer]


def test_experts_count_as_held_once_all_their_layers_are_in(some):
    seen: list[tuple[int, ...]] = []
    some.hold([3, 2], lambda done, total: seen.append(some.expert_ids))
    # Two layers of expert 2, then two of expert 3.
    assert seen == [(0, 1), (0, 1), (0, 1, 2), (0, 1, 2)]
    assert some.expert_ids == (0, 1, 2, 3)


def test_the_first_expert_serves_while_the_others_still_load(tiny_folder, connect):
    servers: list[ExpertServer] = []
    read_on = threading.Event()

    def serve(weights: ExpertWeights) -> None:
        if not servers:
            server = ExpertServer(weights)
            server.start()
            servers.append(server)  # not before it has an address
            assert read_on.wait(WAIT_S)

    loading = ThreadPoolExecutor(1).submit(
        ExpertWeights.load, open_checkpoint(tiny_folder), [1, 2, 3], torch.float32, spare_bytes=10**9, on_held=serve
    )
    wait_until(lambda: servers)
    (server,) = servers
    client = connect(server.address)
    hidden_ND = HIDDEN_ND[:2]
    outputs_ND = outputs_of(client.ask(dispatch_of(hidden_ND, {1: 2}, dispatch_id=1)))
    refused = client.ask(dispatch_of(hidden_ND, {2: 2}, dispatch_id=2))
    held = server.replica.held
    assert (held.expert_ids, held.spare_bytes) == ((1,), 0)
    read_on.set()
    weights = loading.result(WAIT_S)
    assert errors.from_detail(refused.error.detail).reason == "STALE_PLACEMENT"
    assert (weights.expert_ids, weights.spare_bytes) == ((1, 2, 3), 10**9)
    assert torch.equal(outputs_ND, weights.run(1, hidden_ND, [1], [2]))
    assert not client.ask(dispatch_of(hidden_ND, {2: 2}, dispatch_id=3)).HasField("error")
    client.close()
    server.stop()


def test_holding_what_is_held_reads_nothing(some):
    before = some.loaded_bytes
    some.hold([1, 0])
    assert (some.expert_ids, some.loaded_bytes) == ((0, 1), before)


def test_a_released_expert_is_neither_held_nor_run(some):
    some.release([0])
    assert (some.expert_ids, some.weight_bytes) == ((1,), EXPERT_BYTES)
    with pytest.raises(errors.StalePlacement, match="found 0 released"):
        some.run(1, HIDDEN_ND, [0, 1], [40, 40])
    some.hold([0])
    assert some.run(1, HIDDEN_ND, [0, 1], [40, 40]).shape == (80, 32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda some: some.hold([4]), "from 0 to 3, found"),
        (lambda some: some.hold([2, 2]), "each id once"),
        (lambda some: some.release([-1]), "from 0 to 3, found"),
        (lambda some: some.release([0, 3]), r"expected held experts, \[0, 1\], found \[3\]"),
        (lambda some: some.release([0, 1]), "at least one expert to remain"),
    ],
)
def test_impossible_changes_are_refused_and_change_nothing(some, change, words):
    with pytest.raises(errors.BadConfig, match=words):
        change(some)
    assert some.expert_ids == (0, 1)


def test_extra_experts_stay_within_the_spare_memory(tiny_folder):
    checkpoint = open_checkpoint(tiny_folder)
    held = ExpertWeights.load(checkpoint, [0, 1], torch.float32, spare_bytes=EXPERT_BYTES + 1)
    with pytest.raises(errors.NotEnoughMemory, match="expected room for 2 experts"):
        held.hold([2, 3])
    assert checkpoint.bytes_read == held.loaded_bytes == 2 * EXPERT_BYTES
    held.hold([2])
    assert held.spare_bytes == 1
    held.release([0])
    held.hold([3])
    assert held.expert_ids == (1, 2, 3)


def test_without_a_bound_any_expert_may_be_added(some):
    assert some.spare_bytes is None
    some.hold([2, 3])
    assert some.expert_ids == (0, 1, 2, 3)


def test_a_failing_read_leaves_what_was_held(tiny_folder):
    class Failing:
        """The checkpoint, until its second layer."""

        def __init__(self, source):
            self._source = source

        def __getattr__(self, name):
            return getattr(self._source, name)

        def read(self, name, dtype=None, memory=None):
            if name.startswith("layers.3.experts.3."):
                raise errors.BadCheckpoint("expected a file, found none")
            return self._source.read(name, dtype, memory)

    held = ExpertWeights.load(Failing(open_checkpoint(tiny_folder)), [0], torch.float32)
    with pytest.raises(errors.BadCheckpoint):
        held.hold([2, 3])
    assert held.expert_ids == (0, 2)
    assert held.weight_bytes == 2 * EXPERT_BYTES


def test_a_dispatch_under_way_keeps_the_expert_that_is_released(serve, connect, held):
    server = serve()
    client = connect(server.address)
    held.gate.clear()
    client.send(dispatch_of(HIDDEN_ND, {0: 80}, dispatch_id=1))
    held.begun.get(timeout=WAIT_S)
    client.send(dispatch_of(HIDDEN_ND, {0: 80}, dispatch_id=2, layer=3))
    wait_until(lambda: server.replica.batcher.queued_tokens == 160)
    with ThreadPoolExecutor(1) as pool:
        releasing = pool.submit(server.replica.release, [0])
        wait_until(lambda: held.expert_ids == (1, 3))
        refused = client.ask(dispatch_of(HIDDEN_ND, {0: 80}, dispatch_id=3))
        assert errors.from_detail(refused.error.detail).reason == "STALE_PLACEMENT"
        held.gate.set()
        for _ in range(2):
            assert outputs_of(client.next()).shape == (80, 32)
        releasing.result(WAIT_S)
    assert held.weight_bytes == 2 * EXPERT_BYTES


def test_dispatches_go_on_while_experts_come_and_go(serve, connect, held):
    server = serve()
    client = connect(server.address)
    expected = outputs_of(client.ask(dispatch_of(HIDDEN_ND, {1: 40, 3: 40})))
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            server.replica.hold([2])
            server.replica.release([2])

    with ThreadPoolExecutor(1) as pool:
        changing = pool.submit(change)
        try:
            for number in range(200):
                found = outputs_of(client.ask(dispatch_of(HIDDEN_ND, {1: 40, 3: 40}, dispatch_id=number)))
                assert torch.equal(found, expected)
        finally:
            stop.set()
        changing.result(WAIT_S)


def test_describe_tells_what_is_held_now(serve, connect, held):
    server = serve()
    connect(server.address).ask(dispatch_of(HIDDEN_ND, {0: 40, 3: 40}))
    server.replica.hold([2])
    server.replica.release([0])
    told: expert_pb2.DescribeResponse = server.replica.describe()
    assert list(told.expert_ids) == [1, 2, 3]
    assert list(told.expert_tokens) == [0, 0, 40]
    assert told.weight_bytes == 3 * EXPERT_BYTES


def test_released_memory_goes_back_to_the_system(wide_folder):
    held = ExpertWeights.load(open_checkpoint(wide_folder), [0], torch.float32)
    gc.collect()  # what other tests left must not go in the middle of it
    held.hold([1])
    held.release([1])  # nor may what they left free in the allocator serve what is held here
    before = resident_bytes()
    held.hold([1, 2, 3, 4])
    grown = resident_bytes() - before
    held.release([1, 2, 3, 4])
    left = resident_bytes() - before
    assert grown > 4 * held.weight_bytes * 0.5  # the rest was free already
    assert left < 0.1 * grown
