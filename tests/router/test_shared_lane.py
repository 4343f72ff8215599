"""Tensors through memory shared with a replica on the same host: the same answers, whoever hangs, dies or is late."""

from __future__ import annotations

import gc
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experts.server import ExpertServer
from models.presets import SCOUT
from router.placement import ExpertHolder, Placement
from router.plan import plan_dispatch
from router.transport.base import StepAbandoned
from router.transport.grpc import GrpcTransport
from router.transport.timeouts import DispatchTimeouts
from tests.models.checkpoint_files import write_hf
from tests.router.live_transport import wait_until
from tests.router.scripted_replica import ScriptedReplica

WAIT_S = 30
WIDTH = 32


class TripledExperts:
    """Experts that triple what they get, behind a gate; computing is announced."""

    fingerprint = "f00d"
    expert_ids = (0, 1, 2, 3)
    weight_bytes = loaded_bytes = 0
    device = torch.device("cpu")
    config = replace(SCOUT, num_layers=2, moe_layers=(0, 1), hidden_size=WIDTH, expert_width=8, num_experts=4)

    def __init__(self, dtype=torch.float32) -> None:
        self.dtype = dtype
        self.gate = threading.Event()
        self.gate.set()
        self.begun: queue.SimpleQueue[int] = queue.SimpleQueue()

    def run(self, layer, hidden_ND, expert_ids, token_counts):
        tripled_ND = hidden_ND * 3
        self.begun.put(layer)
        assert self.gate.wait(WAIT_S)
        return tripled_ND


@pytest.fixture
def start():
    """Start replicas of experts and a transport to them: `start([held, ...])`, the experts dealt out in turn."""
    stops = []

    def run(replicas, *, share_from_bytes=1, answer_s=20.0):
        holders = []
        for index, held in enumerate(replicas):
            server = ExpertServer(held)
            server.start()
            stops.append(server.stop)
            stops.append(held.gate.set)
            holders.append(holder_of(f"replica-{index}", server.address, range(index, 4, len(replicas))))
        timeouts = DispatchTimeouts(answer_s=answer_s, patience_s=30)
        transport = GrpcTransport(
            router_id="test", fingerprint="f00d", timeouts=timeouts, share_from_bytes=share_from_bytes
        )
        stops.append(transport.close)
        transport.update(Placement(version=1, holders=tuple(holders)))
        assert transport.wait_ready(range(4), WAIT_S)
        return transport

    yield run
    for stop in reversed(stops):
        stop()


def holder_of(replica_id: str, address: str, expert_ids) -> ExpertHolder:
    return ExpertHolder(replica_id=replica_id, address=address, expert_ids=tuple(expert_ids))


def dispatch(transport: GrpcTransport, hidden_ND: torch.Tensor):
    ids_TK = torch.arange(hidden_ND.shape[0]).remainder(4).sort().values.reshape(-1, 1)
    plan = plan_dispatch(ids_TK, transport.assign)
    rows_ND = hidden_ND[plan.token_rows_N]
    return transport.dispatch(1, plan, rows_ND), rows_ND


def tokens(number: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(number, WIDTH, generator=torch.Generator().manual_seed(seed)).to(dtype)


def used_bytes(transport: GrpcTransport, replica_id: str = "replica-0") -> int:
    slots = transport.stream(replica_id).slots
    return slots.segment.num_bytes - 4096 - slots.free_bytes


def memfds() -> list[str]:
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        try:
            links.append(os.readlink(fd))
        except OSError:
            continue
    return [link for link in links if "memfd:herd" in link]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("num_replicas", [1, 2])
def test_shared_tensors_are_bit_for_bit_those_sent_inline(start, dtype, num_replicas):
    shared = start([TripledExperts(dtype) for _ in range(num_replicas)])
    inline = start([TripledExperts(dtype) for _ in range(num_replicas)], share_from_bytes=None)
    assert inline.stream("replica-0").slots is None
    for number in (1, 7, 300):
        hidden_TD = tokens(number, dtype=dtype)
        pending, rows_ND = dispatch(shared, hidden_TD)
        outputs_ND = pending.wait()
        assert torch.equal(outputs_ND, dispatch(inline, hidden_TD)[0].wait())
        assert torch.equal(outputs_ND, rows_ND * 3)
        assert used_bytes(shared) == 0


def test_only_tensors_that_are_large_enough_are_shared(start):
    held = TripledExperts()
    transport = start([held], share_from_bytes=10 * WIDTH * 4)
    held.gate.clear()
    small, _ = dispatch(transport, tokens(9))
    assert used_bytes(transport) == 0
    large, _ = dispatch(transport, tokens(10))
    assert used_bytes(transport) > 0
    held.gate.set()
    small.wait()
    large.wait()


def test_outputs_stay_what_they_are_when_their_slot_is_used_again(start):
    transport = start([TripledExperts()])
    first, rows_ND = dispatch(transport, tokens(16, seed=1))
    outputs_ND = first.wait()
    dispatch(transport, tokens(16, seed=2))[0].wait()
    assert torch.equal(outputs_ND, rows_ND * 3)


def test_dispatches_under_way_together_may_be_waited_for_in_any_order(start):
    held = TripledExperts()
    transport = start([held, TripledExperts()])
    held.gate.clear()
    under_way = [dispatch(transport, tokens(20 + seed, seed)) for seed in range(6)]
    held.gate.set()
    for pending, rows_ND in reversed(under_way):
        assert torch.equal(pending.wait(), rows_ND * 3)
    assert used_bytes(transport) == used_bytes(transport, "replica-1") == 0


def test_a_replica_that_shares_nothing_gets_bytes():
    replica = ScriptedReplica("other", (0, 1, 2, 3))
    transport = GrpcTransport(router_id="test", fingerprint="f00d", share_from_bytes=1)
    transport.update(Placement(version=1, holders=(replica.holder,)))
    assert transport.wait_ready(range(4), WAIT_S)
    pending, rows_ND = dispatch(transport, tokens(8))
    assert torch.equal(pending.wait(), rows_ND * 2)
    assert replica.hellos[0].HasField("shared_memory")
    assert not replica.dispatches[0].hidden.HasField("shared")
    transport.close()
    replica.stop()


def test_what_finds_no_room_is_sent(start):
    held = TripledExperts()
    transport = start([held])
    rows = transport.stream("replica-0").slots.segment.num_bytes // (WIDTH * 4) // 2
    held.gate.clear()
    pendings = [dispatch(transport, torch.ones(rows, WIDTH)) for _ in range(2)]
    assert 0 < used_bytes(transport) <= rows * WIDTH * 4 + 4096
    held.gate.set()
    for pending, rows_ND in pendings:
        assert torch.equal(pending.wait(), rows_ND * 3)


def test_a_late_answer_is_written_over_no_newer_dispatch(start):
    held = TripledExperts()
    transport = start([held])
    held.gate.clear()

    def give_up():
        raise StepAbandoned

    transport.on_wait = give_up
    abandoned, _ = dispatch(transport, tokens(40, seed=1))
    with pytest.raises(StepAbandoned):
        abandoned.wait()
    transport.on_wait = lambda: None
    kept = used_bytes(transport)
    assert kept > 0
    pending, rows_ND = dispatch(transport, tokens(40, seed=2))
    assert used_bytes(transport) == 2 * kept
    held.gate.set()
    assert torch.equal(pending.wait(), rows_ND * 3)
    assert wait_until(lambda: used_bytes(transport) == 0)


def test_a_stream_that_was_reset_gets_another_segment(start):
    held = TripledExperts()
    transport = start([held], answer_s=0.5)
    slots = transport.stream("replica-0").slots
    held.gate.clear()
    pending, rows_ND = dispatch(transport, tokens(40))
    assert held.begun.get(timeout=WAIT_S) == 1
    threading.Timer(1.0, held.gate.set).start()
    assert torch.equal(pending.wait(), rows_ND * 3)
    assert transport.stream("replica-0").slots is not slots
    assert used_bytes(transport) == 0


def test_a_broken_stream_keeps_nothing_of_its_segment_though_a_dispatch_failed_with_it(start):
    held = TripledExperts()
    transport = start([held])
    stream = transport.stream("replica-0")
    segment = weakref.ref(stream.slots.segment)
    held.gate.clear()
    pending, rows_ND = dispatch(transport, tokens(40))
    assert held.begun.get(timeout=WAIT_S) == 1
    gc.disable()  # who waits for it may wait for long
    try:
        stream.reset()
        threading.Timer(0.2, held.gate.set).start()
        assert torch.equal(pending.wait(), rows_ND * 3)
        assert wait_until(lambda: segment() is None)
    finally:
        gc.enable()


def test_a_slot_of_a_broken_stream_is_not_sent_on_its_successor(start):
    from protos import errors
    from protos.expert.v1 import expert_pb2

    transport = start([TripledExperts()])
    stream = transport.stream("replica-0")
    slot = stream.take_slot(100)
    stream.reset()
    assert wait_until(lambda: stream.slots is not None and stream.slots is not slot.slots)
    with pytest.raises(errors.ReplicaUnavailable):
        stream.send(expert_pb2.DispatchRequest(), 0, slot)


def test_a_stream_holds_one_descriptor_at_each_end_and_none_after_it(start):
    gc.collect()
    assert wait_until(lambda: not memfds())  # of earlier tests, whose streams may still be ending
    transport = start([TripledExperts(), TripledExperts()])
    assert len(memfds()) == 4
    transport.close()
    assert wait_until(lambda: not memfds())


@pytest.fixture
def replica_process(tmp_path):
    """A replica of a tiny model in a process of its own."""
    command = [sys.executable, "-m", "experts", "--checkpoint", write_hf(tmp_path), "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--parent-pid", str(os.getpid())], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.communicate(timeout=WAIT_S)


ROUTER = """
import json, sys, torch
from router.placement import ExpertHolder, Placement
from router.plan import plan_dispatch
from router.transport.grpc import GrpcTransport
ready = json.loads(sys.argv[1])
transport = GrpcTransport(router_id="test", fingerprint=ready["model_fingerprint"], share_from_bytes=1)
holder = ExpertHolder(replica_id="far", address=ready["address"], expert_ids=tuple(ready["expert_ids"]))
transport.update(Placement(version=1, holders=(holder,)))
assert transport.wait_ready(range(len(ready["expert_ids"])), 30)
plan = plan_dispatch(torch.zeros(8, 1, dtype=torch.int64), transport.assign)
while True:
    transport.dispatch(1, plan, torch.ones(8, 32)).wait()
    assert transport.stream("far").slots is not None
    print("answered", flush=True)
"""


def num_mapped(pid: int) -> int:
    """Count the segments like ours that a process has mapped."""
    lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    return sum(1 for line in lines if "memfd:herd" in line)


def test_a_killed_router_leaves_no_segment_in_the_replica_and_no_file(replica_process):
    process, ready = replica_process
    router = subprocess.Popen([sys.executable, "-c", ROUTER, json.dumps(ready)], stdout=subprocess.PIPE, text=True)
    try:
        assert router.stdout.readline() == "answered\n"
        assert num_mapped(process.pid) == 1
    finally:
        router.send_signal(signal.SIGKILL)
        router.communicate(timeout=WAIT_S)
    assert wait_until(lambda: num_mapped(process.pid) == 0)
    assert not [name for name in os.listdir("/dev/shm") if "herd" in name]


def test_a_killed_replica_leaves_no_segment_in_the_router_and_no_file(replica_process):
    process, ready = replica_process
    before = num_mapped(os.getpid())
    transport = GrpcTransport(router_id="test", fingerprint=ready["model_fingerprint"], share_from_bytes=1)
    transport.update(Placement(version=1, holders=(holder_of("far", ready["address"], ready["expert_ids"]),)))
    assert transport.wait_ready(range(4), WAIT_S)
    dispatch(transport, tokens(8))[0].wait()
    assert num_mapped(os.getpid()) == before + 1
    process.send_signal(signal.SIGKILL)
    assert wait_until(lambda: not transport.stream("far").is_ready)
    assert wait_until(lambda: num_mapped(os.getpid()) <= before)
    transport.close()
    assert not [name for name in os.listdir("/dev/shm") if "herd" in name]
