"""Who is served in a step where tenants are held to even shares."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.even_share import STAY_S, EvenShare
from router.sequence import Sequence
from tests.router.simulation import Simulation


def sequences(held: bool = True, **counts: int) -> list[Sequence]:
    """Return so many sequences of each tenant."""
    simulation = Simulation()
    return [
        simulation.add((5,), 9, tenant=tenant, even_share=held)
        for tenant, count in counts.items()
        for _ in range(count)
    ]


def run(
    generating: list[Sequence], num_steps: int, prefilling: list[Sequence] = (), waiting: list[Sequence] = ()
) -> list[Counter[str]]:
    """Run so many steps; return how many sequences of each tenant were served in each."""
    shares = EvenShare()
    return [
        Counter(each.request.tenant for each in shares.choose(generating, prefilling, waiting))
        for _ in range(num_steps)
    ]


def test_a_tenant_with_many_has_no_more_in_a_step_than_the_one_with_the_fewest():
    assert run(sequences(few=2, more=5, many=30), 20) == [Counter(few=2, more=2, many=2)] * 20


def test_a_tenant_that_is_alone_has_the_whole_step():
    assert run(sequences(many=9), 5) == [Counter(many=9)] * 5


def test_a_tenant_that_is_not_held_to_it_has_all_its_sequences_in_every_step():
    generating = [*sequences(held=False, ours=6), *sequences(few=1, many=9)]
    assert run(generating, 5) == [Counter(ours=6, few=1, many=1)] * 5


def test_where_nobody_is_held_to_it_every_step_serves_every_sequence():
    assert run(sequences(held=False, few=1, many=9), 5) == [Counter(few=1, many=9)] * 5


def test_the_sequences_of_a_tenant_take_turns():
    shares, generating = EvenShare(), sequences(few=1, many=10)
    served = [shares.choose(generating, (), ()) for _ in range(55)]
    tokens = Counter(each.request.request_id for step in served for each in step if each.request.tenant == "many")
    assert len(tokens) == 10
    assert max(tokens.values()) - min(tokens.values()) <= 1


def test_a_tenant_whose_prompt_is_computed_counts_as_one_with_so_many_sequences():
    assert run(sequences(many=9), 5, prefilling=sequences(few=2)) == [Counter(many=2)] * 5


def test_a_tenant_that_has_just_left_is_left_its_share_for_a_moment():
    now = 100.0
    shares, many, few = EvenShare(clock=lambda: now), sequences(many=9), sequences(few=1)
    shares.choose([*many, *few], (), ())
    now += STAY_S
    assert len(shares.choose(many, (), ())) == 1
    now += 0.01
    assert shares.choose(many, (), ()) == many


def test_what_a_tenant_has_waiting_beside_what_it_runs_counts():
    assert run(sequences(few=1, many=9), 5, waiting=sequences(few=2)) == [Counter(few=1, many=3)] * 5


def test_one_that_waits_for_its_first_slot_slows_down_nobody_who_could_give_one_up():
    assert run(sequences(many=9), 5, waiting=sequences(few=1)) == [Counter(many=9)] * 5


def test_a_key_that_was_not_held_when_some_of_its_sequences_began_is_held():
    generating = [*sequences(held=False, many=3), *sequences(few=1, many=6)]
    assert run(generating, 5) == [Counter(few=1, many=3)] * 5


def test_short_sequences_that_come_one_after_the_other_do_not_stop_an_older_one():
    shares, few = EvenShare(), sequences(few=1)
    [old] = sequences(many=1)
    num_tokens = 0
    for _ in range(60):
        served = shares.choose([*few, old, *sequences(many=2)], (), ())
        num_tokens += old in served
    assert num_tokens >= 20


def test_among_a_tenants_own_the_more_urgent_comes_first():
    shares, few, usual = EvenShare(), sequences(few=1), sequences(many=9)
    [urgent] = sequences(many=1)
    urgent.request = dataclasses.replace(urgent.request, priority=-1)
    assert all(urgent in shares.choose([*few, *usual, urgent], (), ()) for _ in range(9))


def test_prompts_of_its_own_do_not_stop_a_tenant_that_generates():
    assert run(sequences(few=1, many=2), 5, prefilling=sequences(many=6)) == [Counter(few=1, many=1)] * 5


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.booleans()), min_size=1, max_size=5))
def test_every_step_serves_each_tenant_and_nobody_twice_and_everybody_in_the_end(counts):
    generating, prefilling = [], []
    for index, (num_generating, num_prefilling, held) in enumerate(counts):
        generating += sequences(held, **{f"t{index}": num_generating})
        prefilling += sequences(held, **{f"t{index}": num_prefilling})
    shares = EvenShare()
    served = [shares.choose(generating, prefilling, ()) for _ in range(len(generating) + 1)]
    tenants = {each.request.tenant for each in generating}
    for step in served:
        assert len(set(map(id, step))) == len(step)
        assert {each.request.tenant for each in step} == tenants
    assert {id(each) for step in served for each in step} == set(map(id, generating))


@pytest.mark.parametrize("slots", [4, 9])
def test_held_tenants_get_all_their_tokens_through_the_scheduler(slots):
    simulation = Simulation(slots=slots, num_global=200, num_local=200)
    many = [simulation.add([index, 3], 6, tenant="many", even_share=True) for index in range(8)]
    few = simulation.add([20, 3], 6, tenant="few", even_share=True)
    simulation.run()
    assert sorted(simulation.finished, key=id) == sorted([*many, few], key=id)
    assert simulation.finished.index(few) <= 3, "it is served in every step, and they are not"


def test_no_step_is_empty_though_those_whose_turn_it_is_find_no_page():
    simulation = Simulation(slots=9, num_global=6, num_local=6, chunk=None)
    for index in range(4):
        simulation.add([index, 3, 4], 12, tenant="many", even_share=True)
    simulation.add([20, 3, 4], 12, tenant="few", even_share=True)
    while simulation.scheduler.running or simulation.scheduler.waiting:
        assert simulation.step()
