"""The budget of prompt tokens, steered by simulated steps: no clock here."""

from __future__ import annotations

import random

import pytest

from router.step_budget import StepBudget

PLAIN_S = 0.05


def budget(**changes) -> StepBudget:
    return StepBudget(**{"step_tokens": 512, "stretch": 2.0, "least_tokens": 16} | changes)


class Machine:
    """Steps that take a fixed time, some for each prompt token, and some more as soon as there is one."""

    def __init__(self, per_token_s: float = 0.0005, first_s: float = 0.01, noise: float = 0.0) -> None:
        self.per_token_s = per_token_s
        self.first_s = first_s
        self.plain_s = PLAIN_S
        self._noise = noise
        self._random = random.Random(3)

    def seconds(self, num_prompt: int) -> float:
        extra_s = self.first_s + num_prompt * self.per_token_s if num_prompt else 0.0
        return (self.plain_s + extra_s) * self._random.uniform(1, 1 + self._noise)

    def run(self, steered: StepBudget, num_steps: int, *, num_generating: int = 8, longest: int = 10**6) -> list[float]:
        """Run steps with a prompt that never ends, or pieces of at most `longest`; return what each took."""
        taken = []
        for _ in range(num_steps):
            num_prompt = min(steered.prompt_tokens(num_generating, 1), longest)
            taken.append(self.seconds(num_prompt))
            steered.observe(num_generating=num_generating, num_prompts=1, num_prompt=num_prompt, seconds=taken[-1])
        return taken


def test_prompts_have_the_whole_step_when_nobody_generates():
    assert budget(step_tokens=100).prompt_tokens(0, 1) == 100


def test_a_step_without_prompts_is_measured_before_the_first_one_with():
    steered = budget()
    assert steered.prompt_tokens(8, 1) == 0
    steered.observe(num_generating=8, num_prompts=1, num_prompt=0, seconds=PLAIN_S)
    assert steered.prompt_tokens(8, 1) > 0
    assert steered.prompt_tokens(32, 1) == 0, "what 8 sequences take says little about 32"


@pytest.mark.parametrize("per_token_s", [0.00005, 0.0002, 0.0005, 0.002])
def test_mixed_steps_come_to_the_allowed_duration_or_the_whole_step(per_token_s):
    steered, machine = budget(), Machine(per_token_s)
    machine.run(steered, 30)
    mixed = [seconds for seconds in machine.run(steered, 60) if seconds > PLAIN_S]
    whole_step_s = machine.seconds(512 - 8)
    assert min(mixed) == pytest.approx(min(2 * PLAIN_S, whole_step_s), rel=0.05)
    assert max(mixed) <= 2 * PLAIN_S * 1.01


def test_mixed_steps_stay_within_the_stretch_in_spite_of_noise():
    steered, machine = budget(), Machine(noise=0.3)
    machine.run(steered, 50)
    taken = sorted(machine.run(steered, 500))
    assert taken[int(len(taken) * 0.5)] <= 2 * PLAIN_S * 1.3
    assert taken[int(len(taken) * 0.99)] <= 2 * PLAIN_S * 1.3 * 1.3


def test_a_prompt_gets_on_however_slow_its_steps_are():
    steered, machine = budget(), Machine(per_token_s=1.0)
    machine.run(steered, 50)
    assert steered.prompt_tokens(8, 1) == 16


def test_no_step_exceeds_its_most_tokens():
    steered, machine = budget(step_tokens=64, least_tokens=100), Machine(per_token_s=0, first_s=0)
    machine.run(steered, 20)
    assert steered.prompt_tokens(8, 1) == 56
    assert steered.prompt_tokens(63, 1) in (0, 1)


def test_the_budget_follows_a_machine_that_becomes_slower_and_faster_again():
    steered, machine = budget(), Machine(per_token_s=0.0005)
    machine.run(steered, 50)
    before = steered.prompt_tokens(8, 1)
    machine.per_token_s = 0.005
    machine.run(steered, 50)
    assert steered.prompt_tokens(8, 1) == 16
    machine.per_token_s = 0.0005
    machine.run(steered, 50)
    assert steered.prompt_tokens(8, 1) == pytest.approx(before, rel=0.05)


def test_a_step_without_prompts_is_measured_again_now_and_then():
    steered, machine = budget(), Machine()
    taken = machine.run(steered, 500)
    assert 500 / 70 < taken.count(PLAIN_S) < 500 / 60


def test_longer_contexts_lengthen_mixed_steps_as_far_as_they_lengthen_the_others():
    steered, machine = budget(), Machine()
    machine.run(steered, 50)
    before = steered.prompt_tokens(8, 1)
    machine.plain_s = 2 * PLAIN_S
    machine.run(steered, 400)
    assert steered.prompt_tokens(8, 1) > before


def test_one_slow_step_without_prompts_does_not_stretch_the_mixed_ones():
    steered, machine = budget(), Machine()
    machine.run(steered, 400)
    before = steered.prompt_tokens(8, 1)
    steered.observe(num_generating=8, num_prompts=1, num_prompt=0, seconds=100 * PLAIN_S)  # it waited for a replica
    machine.run(steered, 50)
    assert steered.prompt_tokens(8, 1) == pytest.approx(before, rel=0.05)


@pytest.mark.parametrize("num_prompt", [3, 100])
def test_one_slow_mixed_step_halves_the_budget_at_most(num_prompt):
    steered, machine = budget(), Machine(per_token_s=0.0001)
    machine.run(steered, 50)
    before = steered.prompt_tokens(8, 1)
    steered.observe(num_generating=8, num_prompts=1, num_prompt=num_prompt, seconds=100 * PLAIN_S)
    assert steered.prompt_tokens(8, 1) == pytest.approx(before / 2, abs=1)


def test_short_prompts_that_take_little_leave_the_budget_for_long_ones():
    steered, machine = budget(), Machine(per_token_s=0.0001)
    machine.run(steered, 50)
    before = steered.prompt_tokens(8, 1)
    machine.run(steered, 60, longest=10)
    steered.observe(num_generating=8, num_prompts=1, num_prompt=0, seconds=PLAIN_S)
    assert steered.prompt_tokens(8, 1) == before


def test_the_speed_of_prompts_is_learnt_where_nobody_generates():
    steered = budget()
    assert steered.prompt_tokens_per_s == 0
    for _ in range(20):
        steered.observe(num_generating=0, num_prompts=1, num_prompt=512, seconds=1.0)
        steered.observe(num_generating=4, num_prompts=1, num_prompt=512, seconds=9.0)
    assert steered.prompt_tokens_per_s == pytest.approx(512)


def test_a_burst_of_prompts_gets_more_the_fewer_generate_beside_it():
    steered, machine = budget(step_tokens=100_000), Machine()
    machine.run(steered, 60)
    alone = steered.prompt_tokens(8, 1)
    assert steered.prompt_tokens(64, 2) == 0, "what 8 sequences take says little about 64"
    assert steered.prompt_tokens(8, 2) == pytest.approx(8 * alone, abs=8)
    assert steered.prompt_tokens(8, 8) == pytest.approx(32 * alone, abs=32)


def test_a_burst_is_steered_to_its_longer_steps_and_leaves_the_share_of_one_prompt_as_it_was():
    steered, machine = budget(step_tokens=100_000), Machine(first_s=0.0)
    machine.run(steered, 60)
    alone = steered.prompt_tokens(8, 1)
    for _ in range(30):
        num_prompt = steered.prompt_tokens(8, 3)
        seconds = machine.seconds(num_prompt)
        steered.observe(num_generating=8, num_prompts=3, num_prompt=num_prompt, seconds=seconds)
    assert seconds == pytest.approx(13 * PLAIN_S, rel=0.05)
    assert steered.prompt_tokens(8, 1) == pytest.approx(alone, rel=0.05)
