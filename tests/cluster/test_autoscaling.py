"""Scaling decisions: what is needed, how soon, how far, and who gets the budget."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.autoscaling import Bounds, History, Need, Pace, decide
from cluster.scaling_budget import Want, share_budget
from cluster.scaling_needs import (
    ExpertStats,
    FrontDoorStats,
    RouterStats,
    Targets,
    experts_need,
    front_door_need,
    router_need,
)
from protos.errors import BadConfig

PACE = Pace()


@dataclass
class Deployment:
    """A deployment asked once a second; replicas take `start_s` to run."""

    present: int = 1
    bounds: Bounds = field(default_factory=lambda: Bounds(min_replicas=1, max_replicas=100))
    start_s: int = 0
    now: float = 0.0
    history: History = field(default_factory=History)

    def __post_init__(self):
        self.running = self.present
        self._starts: list[tuple[float, int]] = []

    def ask(self, need: Need | None) -> int:
        target, self.history = decide(
            need,
            present=self.present,
            running=self.running,
            bounds=self.bounds,
            pace=PACE,
            history=self.history,
            now=self.now,
        )
        self._starts.append((self.now + self.start_s, target))
        self.present = target
        self.now += 1
        due = [number for at, number in self._starts if at <= self.now]
        self.running = min(due[-1] if due else self.running, target)
        return target

    def hold(self, need: Need | None, seconds: int) -> list[int]:
        return [self.ask(need) for _ in range(seconds)]


def test_more_demand_than_the_high_mark_adds_what_brings_it_to_the_aim_a_second_later():
    assert Deployment(10).hold(Need(demand=9.0), 3) == [10, 13, 13]


def test_replicas_at_most_double_at_a_time():
    assert Deployment(2).hold(Need(demand=50.0), 8)[::2] == [2, 4, 8, 16]


def test_a_burst_of_one_sample_adds_nothing():
    deployment = Deployment(4)
    assert [deployment.ask(Need(demand=demand)) for demand in (2.8, 9, 2.8, 9, 2.8)] == [4, 4, 4, 4, 4]


def test_replicas_on_their_way_are_not_asked_for_again():
    deployment = Deployment(4, start_s=30)
    assert deployment.hold(Need(demand=4.0, lateness=9.0), 29)[-1] == 6


def test_lateness_asks_for_more_though_demand_cannot_show_it():
    assert Deployment(4).hold(Need(demand=2.9, lateness=1.5), 2) == [4, 6]


def test_those_who_wait_since_before_replicas_came_do_not_ask_for_still_more():
    deployment = Deployment(4)
    assert deployment.hold(Need(demand=2.9, lateness=1.5), 9)[-1] == 6


def test_one_fewer_after_a_minute_of_too_little_to_do_and_the_next_a_minute_later():
    asked = Deployment(5).hold(Need(demand=0.5), 150)
    assert (asked[59], asked[60], asked[120], asked[121]) == (5, 4, 4, 3)


def test_none_goes_for_want_of_the_work_that_one_does_which_still_loads():
    """One that ran at 0.9 has half of it left, because the other has the rest and is not asked."""
    history, bounds = History(), Bounds(max_replicas=3)
    for second in range(200):
        asked, history = decide(
            Need(demand=0.45), present=2, running=1, bounds=bounds, pace=PACE, history=history, now=second
        )
        assert asked == 2
    for second in range(200, 261):
        asked, history = decide(
            Need(demand=0.0), present=2, running=1, bounds=bounds, pace=PACE, history=history, now=second
        )
    assert asked == 1  # an idle one does go


def test_a_large_deployment_gives_up_a_tenth_at_a_time():
    assert Deployment(90).hold(Need(demand=10.0), 61)[-1] == 81


def test_no_more_go_than_would_not_come_back():
    assert Deployment(90).hold(Need(demand=51.0), 500)[-1] == 85


def test_one_busy_second_starts_the_minute_anew():
    deployment = Deployment(5)
    deployment.hold(Need(demand=0.5), 50)
    deployment.ask(Need(demand=3.5))
    assert deployment.hold(Need(demand=0.5), 60)[-1] == 5


def test_whoever_still_waits_keeps_every_replica():
    assert Deployment(5).hold(Need(demand=0.5, lateness=0.6), 200)[-1] == 5


def test_unknown_need_changes_nothing_and_starts_the_minute_anew():
    deployment = Deployment(5)
    deployment.hold(Need(demand=0.5), 59)
    deployment.ask(None)
    assert deployment.hold(Need(demand=0.5), 60)[-1] == 5


def test_never_above_the_maximum_nor_below_the_minimum():
    bounds = Bounds(min_replicas=2, max_replicas=6)
    assert Deployment(4, bounds).hold(Need(demand=99.0, lateness=9), 60)[-1] == 6
    assert Deployment(4, bounds).hold(Need(demand=0.0), 400)[-1] == 2


def test_the_last_replica_stays():
    assert Deployment(2).hold(Need(demand=0.0), 600)[-1] == 1


@given(st.integers(1, 200), st.lists(st.floats(0.9, 1.1), min_size=5, max_size=40))
def test_noise_of_a_tenth_never_makes_replicas_come_and_go(present, noise):
    demand = 0.7 * present
    deployment = Deployment(present, Bounds(min_replicas=1, max_replicas=1000))
    asked = [deployment.ask(Need(demand=demand * each)) for each in noise * 20]
    falls = sum(after < before for before, after in itertools.pairwise(asked))
    assert falls == 0


@given(
    st.integers(0, 50),
    st.lists(st.tuples(st.one_of(st.none(), st.floats(0, 500)), st.floats(0, 50)), max_size=120),
    st.integers(0, 3),
)
def test_steps_are_bounded_whatever_is_needed(present, needs, least):
    bounds = Bounds(min_replicas=least, max_replicas=60)
    deployment = Deployment(max(present, least), bounds)
    before = deployment.present
    for demand, lateness in needs:
        after = deployment.ask(None if demand is None else Need(demand=demand, lateness=lateness))
        assert bounds.min_replicas <= after <= bounds.max_replicas
        assert before - max(1, before // 10) <= after <= max(2 * before, 1, least)
        before = after


def test_marks_out_of_order_are_refused():
    with pytest.raises(BadConfig, match=r"found 0\.9, 0\.7 and 0\.8"):
        Pace(low=0.9).check()


def test_bounds_that_contradict_each_other_are_refused():
    with pytest.raises(BadConfig, match="scaling: expected"):
        Bounds(min_replicas=3, max_replicas=2).check("scaling")


# What is needed.


def door(sequences=0.0, tokens=0.0, at_s=100.0):
    return FrontDoorStats(at_s=at_s, sequences=sequences, queued_prompt_tokens=tokens)


def router(kv=0.0, slots=0.0, tokens=0.0, rate=1000.0, at_s=100.0):
    return RouterStats(at_s=at_s, kv_share=kv, slot_share=slots, queued_prompt_tokens=tokens, prefill_tokens_per_s=rate)


def expert(tokens=0.0, capacity=1000.0, queue_s=0.0, at_s=100.0):
    return ExpertStats(at_s=at_s, tokens_per_s=tokens, capacity_tokens_per_s=capacity, queue_s=queue_s)


def test_front_doors_need_room_for_sequences_or_for_waiting_prompts_whichever_is_more():
    targets = Targets(door_sequences=100, door_queued_tokens=1000)
    assert front_door_need([door(150, 100), door(50, 100)], targets, 100.0) == Need(demand=2.0)
    assert front_door_need([door(1, 3000)], targets, 100.0) == Need(demand=3.0)


def test_routers_need_kv_or_slots_whichever_is_fuller():
    assert router_need([router(0.9, 0.2), router(0.5, 0.2)], Targets(), 100.0) == Need(demand=1.4)
    assert router_need([router(0.1, 1.5), router(0.1, 0.5)], Targets(), 100.0) == Need(demand=2.0)


def test_routers_need_what_computes_the_prompts_that_come():
    stats = RouterStats(
        at_s=100.0,
        kv_share=0.1,
        slot_share=0.1,
        queued_prompt_tokens=0.0,
        prompt_tokens_per_s=1500.0,
        prefill_tokens_per_s=2000.0,
    )
    assert router_need([stats, stats], Targets(), 100.0) == Need(demand=1.5)


def test_a_backlog_counts_in_seconds_of_the_measured_rate_of_all_routers():
    need = router_need([router(tokens=4000, rate=1000), router(tokens=0, rate=3000)], Targets(backlog_s=0.5), 100.0)
    assert need == Need(demand=0.0, lateness=2.0)


def test_a_router_that_has_measured_no_rate_says_nothing_of_its_backlog():
    assert router_need([router(tokens=9000, rate=0)], Targets(), 100.0) == Need(demand=0.0)


def test_slow_first_tokens_are_late_routers():
    assert router_need([router()], Targets(ttft_s=2.0), 100.0, ttft_s=3.0) == Need(demand=0.0, lateness=1.5)


def test_routers_stay_as_they_are_while_it_is_experts_that_are_late():
    assert router_need([router(kv=1.0)], Targets(), 100.0, experts_are_late=True) is None


def test_experts_need_their_token_rate_over_what_each_replica_can_do():
    need = experts_need([expert(500, 1000), expert(900, 3000)], Targets(), 100.0)
    assert need == Need(demand=0.8)


def test_a_queue_at_the_experts_is_lateness():
    need = experts_need([expert(queue_s=0.03), expert(queue_s=0.01)], Targets(queue_s=0.01), 100.0)
    assert need is not None
    assert need.lateness == pytest.approx(2.0)


@pytest.mark.parametrize(("measure", "stats"), [(front_door_need, door), (router_need, router), (experts_need, expert)])
def test_missing_and_stale_reports_make_the_need_unknown(measure, stats):
    assert measure([], Targets(), 100.0) is None
    assert measure([stats(at_s=100.0), stats(at_s=94.0)], Targets(stale_s=5.0), 100.0) is None
    assert measure([stats(at_s=96.0)], Targets(stale_s=5.0), 100.0) is not None


# Who gets the budget.


def test_a_budget_that_suffices_gives_everyone_what_it_wants():
    wants = {"a": Want(wanted=3, present=1), "b": Want(wanted=2, present=2)}
    assert share_budget(wants, 5) == {"a": 3, "b": 2}
    assert share_budget(wants, None) == {"a": 3, "b": 2}


def test_a_short_budget_leaves_everyone_what_it_has_and_gives_the_rest_to_whoever_lacks_most():
    wants = {"a": Want(wanted=10, present=2), "b": Want(wanted=4, present=3), "c": Want(wanted=2, present=4)}
    assert share_budget(wants, 10) == {"a": 5, "b": 3, "c": 2}


def test_the_least_comes_before_what_others_have():
    wants = {"a": Want(wanted=4, present=4), "b": Want(wanted=3, present=0, least=2)}
    assert share_budget(wants, 4) == {"a": 2, "b": 2}


def test_replicas_that_cost_more_use_up_more():
    wants = {"a": Want(wanted=3, present=0, cost=4), "b": Want(wanted=3, present=0)}
    assert share_budget(wants, 9) == {"a": 2, "b": 1}
    assert share_budget(wants, 8) == {"a": 1, "b": 3}


def test_a_budget_below_the_least_is_refused():
    with pytest.raises(BadConfig, match="at least 5"):
        share_budget({"a": Want(wanted=5, present=0, least=5)}, 4)


@given(
    st.dictionaries(
        st.text(max_size=3),
        st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 3), st.integers(0, 4)),
        max_size=6,
    ),
    st.integers(0, 60),
)
def test_the_budget_is_never_exceeded_and_nobody_gets_more_than_it_wants(given_wants, budget):
    wants = {
        name: Want(wanted=wanted + least, present=present, least=least, cost=cost)
        for name, (wanted, present, least, cost) in given_wants.items()
    }
    if sum(want.least * want.cost for want in wants.values()) > budget:
        with pytest.raises(BadConfig):
            share_budget(wants, budget)
        return
    shares = share_budget(wants, budget)
    assert sum(shares[name] * want.cost for name, want in wants.items()) <= budget
    assert all(want.least <= shares[name] <= want.wanted for name, want in wants.items())
