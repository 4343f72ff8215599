"""The directory's placement decisions, from reports of replicas, in virtual time."""

from __future__ import annotations

from cluster.directory import ExpertReplica
from cluster.placement_load import ReplicaReport
from cluster.rebalancer import Rebalancer
from router.placement import ExpertHolder

HOMES = {"a": (0, 1), "b": (2, 3)}


def registered(name: str, *experts: int) -> ExpertReplica:
    return ExpertReplica(
        holder=ExpertHolder(replica_id=name, address=f"{name}:1", expert_ids=experts or HOMES[name]),
        group=f"Experts-{name}",
        home_ids=HOMES[name],
        weight_bytes=100 * len(experts or HOMES[name]),
        pid=1,
    )


def report(name: str, tokens_per_s: dict[int, float], held=None, spare_bytes: int = 100) -> ReplicaReport:
    return ReplicaReport(
        replica_id=name,
        group=f"Experts-{name}",
        host=name,
        held=frozenset(held or HOMES[name]),
        spare_bytes=spare_bytes,
        tokens_per_s=tokens_per_s,
    )


def hear_for(rebalancer: Rebalancer, seconds: int, *reports: ReplicaReport) -> dict:
    """Let reports come every second; return all that was decided."""
    decided = {}
    for second in range(seconds):
        for each in reports:
            rebalancer.hear(each)
        decided |= rebalancer.decide([registered("a"), registered("b")], now=float(second))
    return decided


HOT = (report("a", {0: 600.0, 1: 100.0}), report("b", {2: 150.0, 3: 150.0}))


def test_an_expert_in_demand_gets_a_second_copy_within_seconds():
    rebalancer = Rebalancer()
    assert hear_for(rebalancer, 5, *HOT) == {"b": (frozenset({0}), frozenset())}
    assert rebalancer.wanted("b") == {0, 2, 3}
    assert rebalancer.wanted("a") == {0, 1}


def test_even_load_changes_nothing():
    rebalancer = Rebalancer()
    assert hear_for(rebalancer, 5, report("a", {0: 200.0, 1: 210.0}), report("b", {2: 190.0, 3: 200.0})) == {}


def test_it_decides_once_a_second_however_often_it_hears():
    rebalancer = Rebalancer()
    hear_for(rebalancer, 5, *HOT)
    rebalancer.hear(report("b", {}, held=(0, 2, 3), spare_bytes=0))
    assert rebalancer.decide([registered("a"), registered("b")], now=4.5) == {}


def test_a_new_rebalancer_takes_what_replicas_hold_for_wanted():
    rebalancer = Rebalancer()
    for each in (report("a", {0: 300.0}), report("b", {0: 300.0, 2: 1.0}, held=(0, 2, 3), spare_bytes=0)):
        rebalancer.hear(each)
    assert rebalancer.decide([registered("a"), registered("b", 0, 2, 3)], now=0.0) == {}
    assert rebalancer.wanted("b") == {0, 2, 3}


def test_replicas_that_have_gone_are_forgotten():
    rebalancer = Rebalancer()
    hear_for(rebalancer, 2, *HOT)
    rebalancer.decide([registered("a")], now=10.0)
    assert set(rebalancer.reports) == {"a"}


def test_without_replicas_nothing_is_decided():
    assert Rebalancer().decide([], now=0.0) == {}
