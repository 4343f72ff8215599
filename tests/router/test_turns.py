"""Slots go to tenants in turn: the rule, and the scheduler over real pages, see `simulation.py`."""

from __future__ import annotations

from router.turns import Rank, next_turn
from tests.router.simulation import Simulation


class Line:
    """Who waits, and who has a slot."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Rank, str]] = []
        self.started: list[Rank] = []
        self._num_joined = 0

    def join(self, tenant: str) -> int:
        turn = next_turn(0, tenant, self.waiting, self.started)
        self._num_joined += 1
        self.waiting.append(((0, turn, self._num_joined), tenant))
        return turn

    def start_next(self) -> str:
        rank, tenant = min(self.waiting)
        self.waiting.remove((rank, tenant))
        self.started = [rank]
        return tenant


def test_one_tenant_gets_slots_in_order_of_arrival():
    line = Line()
    assert [line.join("a") for _ in range(4)] == [0, 1, 2, 3]


def test_a_second_tenant_comes_after_no_more_than_one_of_the_firsts():
    line = Line()
    first = [line.join("a") for _ in range(100)]
    assert [line.join("b"), line.join("b")] == first[:2]


def test_who_was_away_has_saved_nothing_up():
    line = Line()
    for _ in range(50):
        line.join("a")
    for _ in range(40):
        line.start_next()
    assert [line.join("b") for _ in range(3)] == [40, 41, 42]


def test_one_that_gives_up_and_comes_again_loses_nothing():
    line = Line()
    for _ in range(10):
        line.join("a")
    for _ in range(5):
        line.join("b")
        line.waiting.pop()
    assert line.join("b") == 0


def test_nobody_waits_for_ever_for_tenants_that_come_anew():
    line = Line()
    for _ in range(20):
        line.join("a")
    served = []
    while any(whose == "a" for _, whose in line.waiting):
        line.join("b")
        served.append(line.start_next())
    assert len(served) <= 41


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


def test_a_sequence_that_passes_those_that_wait_for_a_prefix_moves_nobody_behind_them():
    simulation = Simulation(slots=2)
    same = [simulation.add([1, *range(10, 20)], 2, tenant="many") for _ in range(9)]
    simulation.add([2, 3], 30, tenant="many")
    simulation.step()
    few = simulation.add([3, 4], 2, tenant="few")
    simulation.run()
    assert simulation.finished.index(few) <= 3, len(same)


def test_a_tenants_backlog_of_one_priority_costs_nothing_at_another():
    simulation = Simulation(slots=1)
    for index in range(5):
        simulation.add([index, 3], 2, priority=1, tenant="many")
    others = [simulation.add([10 + index, 3], 2, tenant="few") for index in range(5)]
    urgent = simulation.add([20, 3], 2, tenant="many")
    simulation.run()
    assert simulation.finished.index(urgent) <= 2, len(others)
