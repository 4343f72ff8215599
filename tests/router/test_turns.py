"""Slots go to tenants in turn: the scheduler over real pages, see `simulation.py`."""

from __future__ import annotations

from router.turns import Turns
from tests.router.simulation import Simulation


def test_one_tenant_gets_slots_in_order_of_arrival():
    turns = Turns()
    assert [turns.take("a") for _ in range(4)] == [0, 1, 2, 3]


def test_a_second_tenant_comes_after_no_more_than_one_of_the_firsts():
    turns = Turns()
    first = [turns.take("a") for _ in range(100)]
    assert turns.take("b") == first[0]
    assert turns.take("b") == first[1]


def test_who_was_away_has_saved_nothing_up():
    turns = Turns()
    for _ in range(50):
        turns.reach(turns.take("a"))
    waiting = turns.take("a")
    assert [turns.take("b"), turns.take("b")] == [49, waiting]


def test_nobody_waits_for_ever_for_tenants_that_come_anew():
    turns = Turns()
    last = [turns.take("a") for _ in range(20)][-1]
    ahead = 0
    while (number := turns.take("b")) < last:
        turns.reach(number)
        ahead += 1
    assert ahead <= 20


def test_tenants_that_have_nothing_waiting_are_forgotten():
    turns = Turns()
    for index in range(1000):
        turns.reach(turns.take(f"tenant {index}"))
        turns.reach(turns.take("steady"))
    assert len(turns._next) <= 2


def test_slots_go_to_tenants_in_turn():
    simulation = Simulation(slots=1)
    many = [simulation.add([index, 3], 2, tenant="many") for index in range(6)]
    few = [simulation.add([10 + index, 3], 2, tenant="few") for index in range(2)]
    simulation.run()
    assert simulation.finished == [many[0], few[0], many[1], few[1], *many[2:]]


def test_priority_comes_before_turns():
    simulation = Simulation(slots=1)
    many = [simulation.add([index, 3], 2, priority=-1, tenant="many") for index in range(3)]
    few = simulation.add([10, 3], 2, tenant="few")
    simulation.run()
    assert simulation.finished == [*many, few]
