"""The number of batches, chosen by simulated steps: no clock here."""

from __future__ import annotations

import random

import pytest

from router.overlap import Overlap


class Machine:
    """Takes as many seconds for a step as the table says for one batch and for two."""

    def __init__(self, one: float, two: float, noise: float = 0.0) -> None:
        self.seconds = {1: one, 2: two}
        self._noise = noise
        self._random = random.Random(7)

    def run(self, overlap: Overlap, num_steps: int, num_tokens: int = 32) -> list[int]:
        chosen = []
        for _ in range(num_steps):
            chosen.append(overlap.num_batches(num_tokens))
            seconds = self.seconds[chosen[-1]] * self._random.uniform(1, 1 + self._noise)
            overlap.observe(num_tokens, chosen[-1], seconds)
        return chosen


def share(chosen: list[int], number: int) -> float:
    return chosen.count(number) / len(chosen)


def test_a_single_token_is_never_split():
    overlap = Overlap()
    assert Machine(1.0, 0.1).run(overlap, 50, num_tokens=1) == [1] * 50


@pytest.mark.parametrize(("one", "two", "best"), [(1.0, 0.7, 2), (0.7, 1.0, 1), (1.0, 0.99, 1)])
def test_the_faster_choice_is_taken_and_the_other_tried_rarely(one, two, best):
    overlap, machine = Overlap(), Machine(one, two)
    machine.run(overlap, 10)
    chosen = machine.run(overlap, 1000)
    assert 0.98 <= share(chosen, best) < 1


def test_a_first_step_that_allocates_does_not_decide():
    overlap = Overlap()
    for number in (1, 2):
        overlap.observe(32, number, 50.0 / number)
    assert share(Machine(0.7, 1.0).run(overlap, 100), 1) > 0.9


@pytest.mark.parametrize("best", [1, 2])
def test_the_choice_turns_when_the_load_does_and_turns_back(best):
    slow, fast = {best: 0.5, 3 - best: 1.0}, {best: 2.0, 3 - best: 1.0}
    overlap, machine = Overlap(), Machine(0, 0)
    for seconds, expected in ((slow, best), (fast, 3 - best), (slow, best), (fast, 3 - best)):
        machine.seconds = seconds
        machine.run(overlap, 150)
        assert share(machine.run(overlap, 100), expected) > 0.95


@pytest.mark.parametrize("best", [1, 2])
def test_the_choice_turns_when_only_the_other_became_faster(best):
    overlap, machine = Overlap(), Machine(0, 0)
    machine.seconds = {best: 1.0, 3 - best: 1.2}
    machine.run(overlap, 5000)
    machine.seconds = {best: 1.0, 3 - best: 0.5}
    machine.run(overlap, 100)
    assert share(machine.run(overlap, 500), 3 - best) > 0.95
    machine.seconds = {best: 1.0, 3 - best: 1.2}
    machine.run(overlap, 100)
    assert share(machine.run(overlap, 500), best) > 0.95


@pytest.mark.parametrize("number", [1, 2])
def test_a_step_that_waited_for_a_replica_does_not_turn_the_choice(number):
    overlap, machine = Overlap(), Machine(1.0, 1.0)
    machine.seconds[number] = 0.8
    machine.run(overlap, 100)
    overlap.observe(32, number, 1000.0)
    assert share(machine.run(overlap, 60), number) > 0.9


def test_noise_does_not_turn_the_choice():
    overlap, machine = Overlap(), Machine(1.0, 1.3, noise=0.5)
    machine.run(overlap, 20)
    assert share(machine.run(overlap, 3000), 1) > 0.95


def test_steps_of_another_size_are_judged_by_themselves():
    overlap = Overlap()
    small, large = Machine(0.7, 1.0), Machine(1.0, 0.7)
    for _ in range(50):
        small.run(overlap, 1, num_tokens=8)
        large.run(overlap, 1, num_tokens=500)
    assert overlap.num_batches(8) == 1
    assert overlap.num_batches(400) == 2
