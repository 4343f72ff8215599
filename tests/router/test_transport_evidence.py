"""The gRPC transport beside replicas that are late, silent, damaged or slow: others stand in, and they come back."""

from __future__ import annotations

import time

import pytest
import torch

from protos import errors
from router.transport import stream
from router.transport.health import DispatchTimes
from tests.router.live_transport import EXPERTS, HIDDEN_TD, run, send_to, wait_until


def get_used_to(transport, times: int = 40) -> None:
    """Let a transport learn how fast its replicas are."""
    for _ in range(times):
        run(transport)


def test_a_late_answer_is_not_waited_for_where_another_holder_has_one(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS], answer_s=60.0)
    get_used_to(transport)
    replicas[0].gate.clear()
    started = time.monotonic()
    assert torch.equal(run(transport), HIDDEN_TD * 2)
    assert time.monotonic() - started < 10
    assert transport.health().counts.hedges >= 1
    replicas[0].gate.set()


def test_one_of_many_holders_stands_in_when_several_are_late(cluster):
    transport, replicas = cluster([EXPERTS] * 4, answer_s=60.0)
    get_used_to(transport)
    for replica in replicas[:3]:
        replica.gate.clear()
    pending, expected = send_to(transport, ["replica-0"])
    assert torch.equal(pending.wait(), expected)
    for replica in replicas:
        replica.gate.set()


def test_holders_of_parts_stand_in_together(cluster):
    transport, replicas = cluster([EXPERTS, (0, 1), (2, 3)], answer_s=60.0)
    get_used_to(transport)
    replicas[0].gate.clear()
    pending, expected = send_to(transport, ["replica-0"])
    assert torch.equal(pending.wait(), expected)
    assert transport.health().counts.hedges >= 1
    replicas[0].gate.set()


def test_the_only_holder_is_waited_for_however_late_it_is(cluster):
    transport, (replica,) = cluster([EXPERTS], answer_s=60.0)
    get_used_to(transport)
    replica.gate.clear()
    transport.on_wait = replica.gate.set
    pending, expected = send_to(transport, ["replica-0"])
    assert torch.equal(pending.wait(), expected)
    assert transport.health().counts.hedges == 0


def test_a_replica_that_is_late_again_and_again_is_passed_over_and_comes_back_when_it_is_not(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS], answer_s=60.0)
    get_used_to(transport)
    replicas[0].gate.clear()
    assert wait_until(lambda: run(transport) is not None and transport.health().ejected == ("replica-0",))
    asked = len(replicas[0].dispatches)
    for _ in range(5):
        assert torch.equal(run(transport), HIDDEN_TD * 2)
    assert len(replicas[0].dispatches) <= asked + 1  # a probe at most
    replicas[0].gate.set()
    assert wait_until(lambda: run(transport) is not None and not transport.health().ejected)
    asked = len(replicas[0].dispatches)
    for _ in range(4):
        run(transport)
    assert len(replicas[0].dispatches) > asked


def test_nobody_waits_for_probes(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS], answer_s=60.0)
    get_used_to(transport)
    replicas[0].gate.clear()
    assert wait_until(lambda: run(transport) is not None and transport.health().counts.probes > 0)
    assert transport.health().ejected == ("replica-0",)
    replicas[0].gate.set()


def test_of_a_replicas_probes_only_the_newest_is_kept(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS], answer_s=60.0)
    get_used_to(transport)
    replicas[0].gate.clear()
    assert wait_until(lambda: run(transport) is not None and transport.health().counts.probes >= 2)
    assert transport.stream("replica-0").num_pending <= 1
    replicas[0].gate.set()


def test_a_replica_under_suspicion_is_asked_where_nobody_else_is_left(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS], answer_s=60.0)
    get_used_to(transport)
    replicas[0].gate.clear()
    assert wait_until(lambda: run(transport) is not None and transport.health().ejected)
    replicas[0].gate.set()
    replicas[1].stop()
    assert torch.equal(run(transport), HIDDEN_TD * 2)
    assert not transport.health().ejected


def test_an_answer_that_was_damaged_on_its_way_is_asked_for_again(cluster):
    transport, (replica,) = cluster([EXPERTS])
    replica.num_damaged = 2
    assert torch.equal(run(transport), HIDDEN_TD * 2)
    assert transport.health().counts.resends == 2


def test_a_replica_whose_answers_are_all_damaged_is_passed_over(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS])
    replicas[0].num_damaged = 1_000_000
    for _ in range(8):
        assert torch.equal(run(transport), HIDDEN_TD * 2)
    assert transport.health().ejected == ("replica-0",)


def test_what_a_replica_may_owe_has_a_bound(cluster, monkeypatch):
    monkeypatch.setattr(stream, "MOST_OWED", 3)
    transport, (replica,) = cluster([EXPERTS], answer_s=60.0)
    replica.gate.clear()
    for _ in range(3):
        pending, _ = send_to(transport, ["replica-0"])
        pending.give_up()
    transport.timeouts = type(transport.timeouts)(answer_s=60.0, patience_s=0.2)
    with pytest.raises(errors.ReplicaUnavailable, match="owe less than 3"):
        send_to(transport, ["replica-0"])
    replica.gate.set()
    assert wait_until(lambda: not transport.stream("replica-0").num_owed)
    transport.timeouts = type(transport.timeouts)()
    assert torch.equal(run(transport), HIDDEN_TD * 2)


def test_answers_are_timed_by_part_and_one_that_is_not_used_is_not(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS], answer_s=60.0)
    get_used_to(transport)
    known = transport.health()
    assert known.times.answers == known.counts.shares
    assert sum(known.times.parts().values()) == pytest.approx(known.times.total_s)
    replicas[0].gate.clear()
    pending, _ = send_to(transport, ["replica-0"])
    pending.wait()
    replicas[0].gate.set()
    assert transport.health().times.answers == known.times.answers + 1


def test_what_replicas_say_of_an_answer_is_told_apart_from_the_network():
    times = DispatchTimes()
    times.observe(0.010, queue_us=1000, compute_us=6000)
    times.observe(0.020, queue_us=2000, compute_us=7000)
    assert times.answers == 2
    assert times.parts() == pytest.approx({"queue": 0.003, "compute": 0.013, "network": 0.014})
