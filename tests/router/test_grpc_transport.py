"""The gRPC transport against replicas that die, hang, refuse and answer wrongly."""

from __future__ import annotations

import threading

import pytest
import torch

from protos import errors
from router.placement import Placement
from router.plan import plan_dispatch
from router.transport.grpc import DispatchTimeouts, GrpcTransport
from tests.router.scripted_replica import ScriptedReplica

EXPERTS = range(4)
WAIT_S = 20
HIDDEN_TD = torch.arange(24, dtype=torch.float32).reshape(6, 4)
EXPERT_IDS_TK = torch.tensor([[3], [0], [1], [0], [2], [3]])


@pytest.fixture
def cluster():
    """Start replicas and a transport that knows them: `cluster([(0, 1), (2, 3)])`."""
    replicas: list[ScriptedReplica] = []
    transports: list[GrpcTransport] = []

    def start(groups, *, answer_s=10.0, patience_s=15.0):
        replicas.extend(ScriptedReplica(f"replica-{i}", tuple(experts)) for i, experts in enumerate(groups))
        timeouts = DispatchTimeouts(answer_s=answer_s, patience_s=patience_s)
        transport = GrpcTransport(router_id="test", fingerprint="f00d", timeouts=timeouts)
        transports.append(transport)
        transport.update(placement_of(replicas, 1))
        held = sorted({expert for group in groups for expert in group})
        assert all(transport.wait_ready(range(expert, expert + 1), WAIT_S) for expert in held)
        return transport, replicas

    yield start
    for transport in transports:
        transport.close()
    for replica in replicas:
        replica.stop()


def placement_of(replicas, version) -> Placement:
    return Placement(version=version, holders=tuple(replica.holder for replica in replicas))


def run(transport: GrpcTransport) -> torch.Tensor:
    """Dispatch every token and bring the outputs back into the tokens' order."""
    plan = plan_dispatch(EXPERT_IDS_TK, transport.choose_replica)
    outputs_ND = transport.dispatch(7, plan, HIDDEN_TD[plan.token_rows_N]).wait()
    return torch.empty_like(HIDDEN_TD).index_copy(0, plan.token_rows_N, outputs_ND)


@pytest.mark.parametrize("groups", [[EXPERTS], [(0, 2), (1, 3)], [(0,), (1,), (2,), (3,)]])
def test_every_token_comes_back_from_its_expert(cluster, groups):
    transport, replicas = cluster(groups)
    assert torch.equal(run(transport), HIDDEN_TD * 2)
    for replica in replicas:
        (dispatch,) = replica.dispatches
        assert set(dispatch.expert_ids) == set(replica.expert_ids)
        assert dispatch.layer == 7
        assert replica.hellos[0].model_fingerprint == "f00d"


def test_holders_of_an_expert_take_turns(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS])
    for _ in range(4):
        run(transport)
    assert all(replica.dispatches for replica in replicas)


def test_a_dead_replicas_dispatch_goes_to_another_holder(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS])
    replicas[0].stop()
    for _ in range(3):
        assert torch.equal(run(transport), HIDDEN_TD * 2)


def test_a_replica_that_dies_with_a_dispatch_in_hand_is_replaced(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS])
    replicas[0].hanging.set()
    plan = plan_dispatch(EXPERT_IDS_TK, lambda expert: "replica-0")
    pending = transport.dispatch(7, plan, HIDDEN_TD[plan.token_rows_N])
    replicas[0].stop()
    assert torch.equal(pending.wait(), HIDDEN_TD[plan.token_rows_N] * 2)


def test_a_replica_that_leaves_with_a_dispatch_in_hand_is_replaced(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS])
    replicas[0].hanging.set()
    plan = plan_dispatch(EXPERT_IDS_TK, lambda expert: "replica-0")
    pending = transport.dispatch(7, plan, HIDDEN_TD[plan.token_rows_N])
    transport.update(placement_of(replicas[1:], 2))
    assert torch.equal(pending.wait(), HIDDEN_TD[plan.token_rows_N] * 2)


def test_a_replica_that_hangs_is_reset_and_another_one_asked(cluster):
    transport, replicas = cluster([EXPERTS, EXPERTS], answer_s=0.3)
    replicas[0].hanging.set()
    for _ in range(2):
        assert torch.equal(run(transport), HIDDEN_TD * 2)
    assert len(replicas[1].dispatches) >= 2


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


def test_a_refusal_that_can_be_retried_is_retried(cluster):
    transport, (replica,) = cluster([EXPERTS])
    replica.failures = [errors.Overloaded("queue full", retry_after_ms=1), errors.Draining("restarting")]
    assert torch.equal(run(transport), HIDDEN_TD * 2)


def test_a_refusal_that_cannot_be_retried_is_raised_as_it_was_sent(cluster):
    transport, (replica,) = cluster([EXPERTS])
    replica.failures = [errors.BadDispatch("layer 7 is dense")]
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
    with pytest.raises(errors.NoReplica):
        transport.choose_replica(0)
