"""The gRPC transport against replicas that die, hang, refuse and answer wrongly."""

from __future__ import annotations

import threading
import time
from dataclasses import replace

import pytest
import torch

from protos import channel, errors
from router.location import Location
from router.placement import Placement
from router.transport.base import StepAbandoned
from tests.router.live_transport import EXPERTS, HIDDEN_TD, WAIT_S, placement_of, run, send_to, wait_until
from tests.router.scripted_replica import ScriptedReplica
from tests.router.silent_network import SilentNetwork


@pytest.mark.parametrize("groups", [[EXPERTS], [(0, 2), (1, 3)], [(0,), (1,), (2,), (3,)]])
def test_every_token_comes_back_from_its_expert(cluster, groups):
    transport, replicas = cluster(groups)
    assert torch.equal(run(transport), HIDDEN_TD * 2)
    for replica in replicas:
        (dispatch,) = replica.dispatches
        assert set(dispatch.expert_ids) == set(replica.expert_ids)
        assert dispatch.layer == 7
        assert replica.hellos[0].model_fingerprint == "f00d"


@pytest.mark.parametrize("stands_back", [False, True])
def test_a_router_says_whether_its_dispatches_stand_back(cluster, stands_back):
    _, (replica,) = cluster([EXPERTS], stands_back=stands_back)
    assert replica.hellos[0].stands_back == stands_back


def test_holders_of_experts_that_are_used_alike_take_turns(cluster):
    transport, _ = cluster([EXPERTS, EXPERTS])
    chosen = [transport.assign({0: 1, 1: 1}) for _ in range(4)]
    for assignment in chosen:
        assert assignment[0] != assignment[1]
    assert [each[0] for each in chosen[:2]] == [each[0] for each in chosen[2:]]
    assert chosen[0][0] != chosen[1][0]


def test_a_holder_nearby_is_preferred_until_it_is_gone(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS])
    places = [Location(machine="m"), Location(machine="n")]
    holders = tuple(replace(replica.holder, location=place) for replica, place in zip(replicas, places, strict=True))
    routers = {"test": places[1], "another": places[0]}
    transport.update(Placement(version=2, holders=holders, routers=routers))
    for _ in range(4):
        assert transport.assign({0: 1, 1: 1}) == {0: (("replica-1", 1),), 1: (("replica-1", 1),)}
    replicas[1].stop()
    assert torch.equal(run(transport), HIDDEN_TD * 2)
    assert replicas[0].dispatches


def test_a_dead_replicas_dispatch_goes_to_another_holder(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS])
    replicas[0].stop()
    for _ in range(3):
        assert torch.equal(run(transport), HIDDEN_TD * 2)


def test_a_replica_that_dies_with_a_dispatch_in_hand_is_replaced(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS])
    replicas[0].hanging.set()
    pending, expected = send_to(transport, ["replica-0"])
    replicas[0].stop()
    assert torch.equal(pending.wait(), expected)


def test_a_replica_that_leaves_with_a_dispatch_in_hand_is_replaced(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS])
    replicas[0].hanging.set()
    pending, expected = send_to(transport, ["replica-0"])
    transport.update(placement_of(replicas[1:], 2))
    assert torch.equal(pending.wait(), expected)


def test_a_replica_that_hangs_is_reset_and_another_one_asked(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS], answer_s=0.3)
    replicas[0].hanging.set()
    for _ in range(2):
        assert torch.equal(run(transport), HIDDEN_TD * 2)
    assert len(replicas[1].dispatches) >= 2


def test_replicas_that_hang_together_are_waited_for_together(cluster):
    transport, replicas = cluster([EXPERTS] * 4, answer_s=1.5)
    for replica in replicas[:3]:
        replica.hanging.set()
    pending, expected = send_to(transport, [replica.replica_id for replica in replicas])
    started = time.monotonic()
    assert torch.equal(pending.wait(), expected)
    assert time.monotonic() - started < 4


def test_a_replica_that_failed_a_dispatch_is_not_asked_again_while_another_is_left(cluster):
    transport, replicas = cluster([EXPERTS] * 3, answer_s=0.3)
    for replica in replicas[:2]:
        replica.hanging.set()
    pending, expected = send_to(transport, ["replica-0"])
    assert torch.equal(pending.wait(), expected)
    assert len(replicas[0].dispatches) == 1


def test_experts_of_a_failed_dispatch_that_go_to_one_replica_go_in_one_message(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS])
    replicas[0].failures = [errors.Draining("restarting")]
    pending, expected = send_to(transport, ["replica-0"])
    assert torch.equal(pending.wait(), expected)
    (dispatch,) = replicas[1].dispatches
    assert list(dispatch.expert_ids) == list(EXPERTS)


def test_the_only_holder_may_come_back_within_patience(cluster):
    transport, (replica,) = cluster([EXPERTS])
    replica.stop()
    threading.Timer(0.5, replica.start).start()
    assert torch.equal(run(transport), HIDDEN_TD * 2)
    assert len(replica.hellos) == 2


def test_a_new_placement_rescues_a_waiting_dispatch(cluster):
    transport, (replica,) = cluster([EXPERTS])
    replica.stop()
    late = ScriptedReplica("late", tuple(EXPERTS))
    threading.Timer(0.3, transport.update, [placement_of([late], 2)]).start()
    assert torch.equal(run(transport), HIDDEN_TD * 2)
    assert transport.placement.version == 2
    late.stop()


def test_without_any_holder_the_error_names_the_expert_after_patience(cluster):
    transport, _ = cluster([(0, 1, 2)], patience_s=0.3)
    with pytest.raises(errors.NoReplica, match="holds expert 3"):
        run(transport)


def test_what_is_lacking_is_told_while_a_step_waits_for_it(cluster):
    transport, _ = cluster([(0, 1, 2)], patience_s=60)
    found = []

    def give_up():
        found.append(transport.lacking)
        raise StepAbandoned

    transport.on_wait = give_up
    with pytest.raises(StepAbandoned):
        run(transport)
    assert "holds expert 3" in str(found[0])
    transport.assign({0: 1})
    assert transport.lacking is None


def test_a_refusal_that_can_be_retried_is_retried(cluster):
    transport, (replica,) = cluster([EXPERTS])
    replica.failures = [errors.Overloaded("queue full", retry_after_ms=1), errors.Draining("restarting")]
    assert torch.equal(run(transport), HIDDEN_TD * 2)


def test_a_replica_that_finds_a_dispatch_late_is_replaced(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS])
    replicas[0].failures = [errors.DeadlineExceeded("found its deadline passed")]
    pending, expected = send_to(transport, ["replica-0"])
    assert torch.equal(pending.wait(), expected)


def test_a_replica_is_told_until_when_its_answer_is_waited_for(cluster):
    transport, (replica,) = cluster([EXPERTS], answer_s=2.0)
    run(transport)
    assert 1000 < replica.dispatches[0].deadline_ms <= 2000


def test_a_replica_cannot_ask_for_a_longer_pause_than_patience(cluster):
    transport, (replica,) = cluster([EXPERTS], patience_s=0.5)
    replica.failures = [errors.Overloaded("queue full", retry_after_ms=60_000)] * 2
    started = time.monotonic()
    with pytest.raises(errors.Overloaded):
        run(transport)
    assert time.monotonic() - started < 5


def test_a_dispatch_that_is_refused_as_wrong_once_may_have_been_damaged_on_its_way(cluster):
    transport, (replica,) = cluster([EXPERTS])
    replica.failures = [errors.BadDispatch("damaged"), errors.InternalError("a kernel failed")]
    assert torch.equal(run(transport), HIDDEN_TD * 2)


def test_a_dispatch_that_is_refused_as_wrong_again_and_again_fails_with_what_was_said(cluster):
    transport, (replica,) = cluster([EXPERTS])
    replica.failures = [errors.BadDispatch("layer 7 is dense")] * 3
    with pytest.raises(errors.BadDispatch, match="layer 7 is dense"):
        run(transport)


def test_an_answer_of_the_wrong_shape_is_never_used(cluster):
    transport, (replica,) = cluster([EXPERTS])
    replica.wrong_rows = 1
    with pytest.raises(errors.BadTensor, match=r"\[6, 4\], found \[5, 4\]"):
        run(transport)


def test_an_older_placement_is_ignored(cluster):
    transport, replicas = cluster([EXPERTS])
    transport.update(placement_of(replicas, 5))
    transport.update(Placement(version=3, holders=()))
    assert transport.placement.version == 5


def test_closing_leaves_no_thread_behind(cluster):
    transport, _ = cluster([(0, 1), (2, 3)])
    transport.close()
    assert not [thread.name for thread in threading.enumerate() if thread.name.startswith("dispatch-")]
    with pytest.raises(errors.NoReplica, match="closed"):
        transport.assign({0: 1})


# Ways a step comes to wait, each for longer than a test may take.
WAITS = {
    "for a holder": ([(0, 1, 2)], lambda replica: None),
    "for an answer": ([EXPERTS], lambda replica: replica.hanging.set()),
    "as a replica asked": (
        [EXPERTS],
        lambda replica: replica.failures.append(errors.Overloaded("queue full", retry_after_ms=60_000)),
    ),
}


@pytest.mark.parametrize(("groups", "disturb"), WAITS.values(), ids=WAITS)
def test_closing_wakes_whoever_waits(cluster, groups, disturb):
    transport, (replica,) = cluster(groups, answer_s=60, patience_s=60)
    disturb(replica)
    threading.Timer(0.3, transport.close).start()
    started = time.monotonic()
    with pytest.raises(errors.NoReplica, match="closed"):
        run(transport)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(("groups", "disturb"), WAITS.values(), ids=WAITS)
def test_a_wait_can_be_given_up_by_whoever_waits(cluster, groups, disturb):
    transport, (replica,) = cluster(groups, answer_s=60, patience_s=60)
    disturb(replica)
    calls = []

    def give_up_at_the_third_call():
        calls.append(threading.current_thread())
        if len(calls) == 3:
            raise StepAbandoned

    transport.on_wait = give_up_at_the_third_call
    started = time.monotonic()
    with pytest.raises(StepAbandoned):
        run(transport)
    assert time.monotonic() - started < 10
    assert set(calls) == {threading.current_thread()}
    assert transport.stream("replica-0").num_pending == 0


def test_a_holder_that_refuses_the_router_is_named_with_its_reason(cluster):
    transport, _ = cluster([(0, 1, 2)], patience_s=0.5)
    other = ScriptedReplica("other", (3,))
    other.refusal = errors.ModelMismatch("model_fingerprint: expected beef, found f00d")
    transport.update(placement_of([other], 2))
    assert wait_until(lambda: other.hellos)
    with pytest.raises(errors.NoReplica, match=r"holds expert 3.*other: model_fingerprint: expected beef"):
        transport.assign({3: 1})
    other.stop()


def test_a_stream_over_a_network_that_falls_silent_breaks(cluster, monkeypatch):
    monkeypatch.setattr(channel, "_KEEPALIVE_MS", 300)
    replica = ScriptedReplica("far", tuple(EXPERTS))
    network = SilentNetwork(replica.holder.address)
    transport, _ = cluster([])
    transport.update(Placement(version=2, holders=(replace(replica.holder, address=network.address),)))
    assert transport.wait_ready(EXPERTS, WAIT_S)
    threading.Event().wait(1.5)  # long enough for a client that pings only a few times to have stopped
    assert transport.wait_ready(EXPERTS, WAIT_S)
    network.silence.set()
    assert wait_until(lambda: not transport.is_ready(EXPERTS))
    transport.close()
    network.close()
    replica.stop()
