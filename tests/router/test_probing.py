"""Probes of replicas that are passed over, in virtual time, whatever these do and whenever dispatches come."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from protos import errors
from protos.codec import write_tensor
from protos.expert.v1 import expert_pb2
from router.placement import ExpertHolder, Placement
from router.plan import ReplicaShare
from router.transport.answer_times import FIRST_HEDGE_S
from router.transport.attempt import Attempt
from router.transport.ejection import EJECT_AFTER, FIRST_PROBE_S, LONGEST_PROBE_S
from router.transport.evidence import Evidence
from router.transport.probing import probe
from router.transport.stream import Answer, Answered
from router.transport.streams import ReplicaStreams

ANSWER_S = 20.0
HIDDEN_ND = torch.ones(200, 4)
WELL_S, LATE_S, NEVER_S = 0.005, 2 * FIRST_HEDGE_S, float("inf")


@dataclasses.dataclass(eq=False)
class ScriptedStream:
    """To a replica whose answers take as long as a test says."""

    holder: ExpertHolder
    is_ready: bool = True
    last_answer_at: float = 0.0
    forgotten: set[int] = dataclasses.field(default_factory=set)

    def forget(self, dispatch_id: int) -> None:
        self.forgotten.add(dispatch_id)

    def close(self) -> None:
        self.is_ready = False


class World:
    """Replica "a", passed over, and dispatches that go to others."""

    def __init__(self, held: tuple[int, ...] = (0, 1), shares: tuple[ReplicaShare, ...] | None = None) -> None:
        self.now = 100.0
        self.latency_s = NEVER_S
        self.probes: list[Attempt] = []
        self._due: dict[int, float] = {}
        self._shares = shares or (ReplicaShare("b", (0, 1), (1, 1), 0, 2),)
        self.evidence = Evidence()
        self.streams = ReplicaStreams(lambda holder, on_change: ScriptedStream(holder), patience_s=1.0)
        self.streams.update(Placement(version=1, holders=(ExpertHolder(replica_id="a", address="a", expert_ids=held),)))
        self.evidence.ejection.lost("a", self.now, weight=EJECT_AFTER)

    @property
    def stream(self) -> ScriptedStream:
        stream = self.streams.get("a")
        assert isinstance(stream, ScriptedStream)
        return stream

    @property
    def is_back(self) -> bool:
        return not self.evidence.ejection.ejected

    @property
    def in_flight(self) -> list[Attempt]:
        return [
            each for each in self.probes if not each.answer.done() and each.dispatch_id not in self.stream.forgotten
        ]

    def dispatch(self, after_s: float) -> None:
        """Let time pass and answers come, then send a dispatch."""
        self.now += after_s
        for each in self.probes:
            if not each.answer.done() and self._due[each.dispatch_id] <= self.now:
                self._answer(each)
        probe(self.evidence, self.streams, self._shares, HIDDEN_ND, self._send, self.now)

    def recover(self) -> None:
        """Answer from now on, what is owed included."""
        self.latency_s = WELL_S
        self._due = {each: min(due, self.now + WELL_S) for each, due in self._due.items()}

    def _answer(self, attempt: Attempt) -> None:
        at_s = self._due[attempt.dispatch_id]
        self.stream.last_answer_at = max(self.stream.last_answer_at, at_s)
        result = expert_pb2.DispatchResult(dispatch_id=attempt.dispatch_id)
        write_tensor(result.hidden, HIDDEN_ND[attempt.share.start : attempt.share.stop])
        attempt.answer.set_result(Answered(result, at_s))

    def _send(self, share: ReplicaShare) -> Attempt:
        if not self.stream.is_ready:
            raise errors.ReplicaUnavailable("gone")
        number = len(self.probes)
        sent = Attempt(share, self.stream, number, Answer(), None, self.now, self.now + ANSWER_S)
        self._due[number] = self.now + self.latency_s
        self.probes.append(sent)
        return sent


latencies = st.sampled_from([WELL_S, LATE_S, 0.7, 3.0, NEVER_S])
gaps = st.sampled_from([0.0002, 0.002, 0.05, 0.3, 2.0, 40.0])
turns = st.lists(st.tuples(latencies, gaps, st.integers(1, 40)), max_size=12)


@settings(deadline=None)
@given(turns=turns, gap_s=st.sampled_from([0.0005, 0.01, 0.2]))
def test_whatever_a_replica_does_it_is_probed_with_pauses_and_comes_back_soon_after_it_is_well(turns, gap_s):
    world = World()
    for latency_s, after_s, times in turns:
        world.latency_s = latency_s
        for _ in range(times):
            world.dispatch(after_s)
            assert len(world.in_flight) <= 1
            if world.is_back:
                world.evidence.ejection.lost("a", world.now, weight=EJECT_AFTER)
    world.recover()
    well_at = world.now
    while not world.is_back:
        # Until shortly before the next probe nothing can happen.
        world.dispatch(gap_s if world.in_flight or world.now < well_at + 1 else 0.2)
        assert world.now <= well_at + LONGEST_PROBE_S + 1
    sent = [each.sent_at for each in world.probes]
    assert all(later - sooner >= FIRST_PROBE_S - 1e-6 for sooner, later in itertools.pairwise(sent))


def test_one_that_was_stopped_is_back_at_once_though_its_next_probe_is_far():
    world = World()
    for _ in range(20):
        world.dispatch(1.0)
    world.recover()
    well_at = world.now
    while not world.is_back:
        world.dispatch(0.001)
    assert world.now - well_at < 2 * FIRST_PROBE_S


@pytest.mark.parametrize(
    ("experts", "counts", "expected"),
    [
        ((0, 1), (1, 1), ((0, 1), (1, 1), 0, 2)),
        ((0, 1), (150, 50), ((0,), (64,), 0, 64)),
        ((0, 1), (60, 50), ((0, 1), (60, 4), 0, 64)),
        ((0, 1), (64, 50), ((0,), (64,), 0, 64)),
        ((5, 1, 7, 0), (9, 3, 2, 2), ((1,), (3,), 9, 12)),
        ((5, 7), (9, 3), None),
    ],
)
def test_a_probe_is_a_small_run_of_a_share_whose_experts_the_replica_holds(experts, counts, expected):
    world = World(shares=(ReplicaShare("b", experts, counts, 0, sum(counts)),))
    world.dispatch(1.0)
    found = [
        (each.share.expert_ids, each.share.token_counts, each.share.start, each.share.stop) for each in world.probes
    ]
    assert found == ([expected] if expected else [])


def test_one_that_cannot_be_probed_is_probed_as_soon_as_it_can():
    world = World()
    world.stream.is_ready = False
    world.dispatch(1.0)
    world.dispatch(10.0)
    assert not world.probes
    world.stream.is_ready = True
    world.dispatch(0.001)
    assert len(world.probes) == 1


def test_a_probe_that_is_never_answered_is_dropped_though_its_replica_came_back_otherwise():
    world = World()
    world.dispatch(1.0)
    world.evidence.ejection.won("a", world.now)
    world.dispatch(ANSWER_S)
    assert not world.in_flight
    assert not world.evidence.probes
