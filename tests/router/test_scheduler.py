"""The scheduler over real pages and a computation that checks what it reads: see `simulation.py`."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.request import TokenLogprob
from tests.router.simulation import Simulation, tokens_alone


def distinct(index: int, length: int) -> list[int]:
    """Return a prompt that shares its first token with no other index's."""
    return [index, *range(10, 9 + length)]


def running(simulation: Simulation) -> list:
    return list(simulation.scheduler.running)


def test_slots_are_given_by_priority_and_then_by_arrival():
    simulation = Simulation(slots=3)
    late, usual, soon, second = (
        simulation.add(distinct(i, 3), 9, priority) for i, priority in enumerate((5, 0, -1, 0))
    )
    simulation.step()
    assert running(simulation) == [soon, usual, second]
    assert list(simulation.scheduler.waiting) == [late]


def test_a_better_priority_takes_the_slot_of_the_last_in_rank_which_goes_on_afterwards():
    simulation = Simulation(slots=2)
    first, last = (simulation.add(distinct(i, 3), 5) for i in range(2))
    simulation.step()
    urgent = simulation.add(distinct(2, 3), 2, priority=-1)
    simulation.step()
    assert running(simulation) == [urgent, first]
    assert simulation.preempted == [last]
    simulation.run()
    assert simulation.finished.index(urgent) < simulation.finished.index(last)
    assert last.ids == tokens_alone(distinct(1, 3), 5)
    assert simulation.scheduler.num_preemptions == 1


def test_an_equal_priority_waits_for_a_slot():
    simulation = Simulation(slots=1)
    first, second = (simulation.add(distinct(i, 3), 5) for i in range(2))
    simulation.run()
    assert simulation.finished == [first, second]
    assert not simulation.preempted


def test_nobody_makes_way_for_one_that_could_not_start_even_then():
    simulation = Simulation(num_global=10, num_local=10, chunk=None)
    simulation.add(distinct(0, 20), 8, priority=0)
    background = simulation.add(distinct(1, 4), 4, priority=5)
    simulation.step()
    simulation.add(distinct(2, 30), 1, priority=0)
    simulation.run()
    assert background not in simulation.preempted


def test_a_large_request_is_not_overtaken_for_ever_by_small_ones():
    simulation = Simulation(num_global=10, num_local=10)
    simulation.add(distinct(0, 16), 4)
    large = simulation.add(distinct(1, 36), 1)
    small = [simulation.add(distinct(2 + i, 2), 1) for i in range(20)]
    while large not in simulation.scheduler.running:
        assert not set(small) & set(simulation.finished)
        simulation.step()


def test_half_of_the_prompt_tokens_go_to_the_first_in_rank_and_the_rest_to_the_shortest():
    simulation = Simulation(step_tokens=20, num_local=100, num_global=100)
    first, long, short = (simulation.add(distinct(i, length), 1) for i, length in enumerate((60, 50, 6)))
    assert simulation.step() == {first: 10, short: 6, long: 4}


def test_what_others_leave_of_the_step_goes_to_the_first_in_rank():
    simulation = Simulation(step_tokens=20)
    first, short = (simulation.add(distinct(i, length), 1) for i, length in enumerate((60, 3)))
    assert simulation.step() == {first: 17, short: 3}


def test_a_short_prompt_of_worse_priority_comes_after_a_long_one():
    simulation = Simulation(step_tokens=20, num_local=100, num_global=100)
    first, long, _ = (
        simulation.add(distinct(i, length), 1, priority)
        for i, (length, priority) in enumerate(((60, 0), (50, 0), (6, 1)))
    )
    assert simulation.step() == {first: 10, long: 10}


def test_one_token_of_every_generating_sequence_comes_before_prompts():
    simulation = Simulation(step_tokens=16)
    generating = [simulation.add(distinct(i, 2), 40) for i in range(3)]
    simulation.step()
    long = simulation.add(distinct(3, 100), 1)
    simulation.step()  # measures a step without prompts
    step = simulation.step()
    assert [step[sequence] for sequence in generating] == [1, 1, 1]
    assert 4 <= step[long] <= 13


def test_a_prompt_that_is_first_in_rank_takes_pages_from_those_that_generate():
    simulation = Simulation(num_global=12, num_local=12, chunk=None, step_tokens=4, slots=3)
    growing = [simulation.add(distinct(i, 3), 24, priority=1) for i in range(2)]
    simulation.step()
    simulation.step()
    first = simulation.add(distinct(2, 36), 1)
    num_without = 0
    while first not in simulation.finished:
        num_without += first not in simulation.step()
    assert simulation.preempted
    assert num_without <= 1, "but for a step that measures what others take alone, the first in rank gets on"
    simulation.run()
    assert [sequence.ids for sequence in growing] == [tokens_alone(distinct(i, 3), 24) for i in range(2)]


def test_sequences_in_late_chunks_are_asked_no_more_local_pages_than_they_need():
    simulation = Simulation(num_global=100, num_local=3, chunk=8)
    old = simulation.add(distinct(0, 41), 6)
    while old.num_output == 0:
        simulation.step()
    new = simulation.add(distinct(1, 6), 1)  # 2 of 3 pages: the old one needs no more than the 1 it holds
    assert old.pages.local_table.num_held == 1
    simulation.step()
    assert running(simulation) == [old, new]


def test_siblings_wait_for_the_first_and_share_its_pages():
    simulation = Simulation(slots=4, step_tokens=16, num_local=100, chunk=None)
    prompt = distinct(0, 33)
    siblings = [simulation.add(prompt, 3) for _ in range(4)]
    most = 0
    while simulation.scheduler.running or simulation.scheduler.waiting:
        simulation.step()
        most = max(most, simulation.kv.num_used_pages()[0])
    assert [sequence.num_cached for sequence in siblings] == [0, 32, 32, 32]
    assert simulation.num_computed == 33 + 3 + 3 * (1 + 2) - 1
    assert most <= 8 + 4


def test_others_pass_those_that_wait_for_a_sibling():
    simulation = Simulation(slots=2, step_tokens=8)
    simulation.add(distinct(0, 40), 1)
    sibling = simulation.add(distinct(0, 40), 1)
    other = simulation.add(distinct(1, 3), 1)
    simulation.step()
    assert simulation.finished == [other]
    assert sibling in simulation.scheduler.waiting


@pytest.mark.parametrize("leaves", ["cancelled", "preempted"])
def test_siblings_of_a_sequence_that_leaves_go_on_without_it(leaves):
    simulation = Simulation(slots=2, step_tokens=8)
    first, second = (simulation.add(distinct(0, 40), 1) for _ in range(2))
    simulation.step()
    if leaves == "cancelled":
        simulation.cancel(first)
    else:
        for i in range(2):
            simulation.add(distinct(1 + i, 12), 1, priority=-1)
    simulation.run()
    assert second.num_cached
    assert second.ids == tokens_alone(distinct(0, 40), 1)


def test_nobody_waits_for_a_prefix_that_one_of_worse_priority_computes():
    simulation = Simulation(slots=4, step_tokens=16)
    simulation.add(distinct(1, 100), 1)
    background = simulation.add(distinct(0, 80), 1, priority=5)
    simulation.step()
    urgent, sibling = (simulation.add(distinct(0, 80), 1) for _ in range(2))
    simulation.step()
    assert urgent in simulation.scheduler.running
    assert sibling in simulation.scheduler.waiting, "of equals, one waits for the other"
    simulation.run()
    assert simulation.finished[-1] is background


def test_a_prompt_whose_logits_are_all_wanted_neither_waits_nor_takes_cached_pages():
    simulation = Simulation(slots=2, step_tokens=100, num_local=100)
    simulation.add(distinct(0, 40), 1)
    scored = simulation.add(distinct(0, 40), 1, prompt_logprobs=1)
    simulation.step()
    assert len(simulation.finished) == 2
    assert scored.num_cached == 0


def test_reports_on_a_prompt_that_made_room_are_made_again():
    simulation = Simulation(slots=1, step_tokens=8)
    scored = simulation.add(distinct(0, 30), 1, prompt_logprobs=1)
    simulation.step()
    scored.prompt_logprobs.append(TokenLogprob(token_id=0, logprob=0.0))
    simulation.add(distinct(1, 3), 1, priority=-1)
    simulation.step()
    simulation.step()
    assert simulation.preempted == [scored]
    assert not scored.prompt_logprobs


def test_a_long_prompt_holds_no_more_local_pages_than_its_chunk_and_its_step():
    simulation = Simulation(num_global=80, num_local=80, chunk=8, step_tokens=16)
    simulation.add(distinct(0, 250), 2)
    most = 0
    while simulation.scheduler.running or simulation.scheduler.waiting:
        simulation.scheduler.admit()
        simulation.step()
        most = max(
            most, *(item.sequence.pages.local_table.num_held for item in simulation.work if item.sequence.pages), 0
        )
    assert most <= (8 + 16) // 4


def test_a_long_prompt_gets_on_with_one_chunk_of_local_pages():
    simulation = Simulation(num_global=80, num_local=2, chunk=8, step_tokens=16)
    simulation.add(distinct(0, 250), 2)
    simulation.run()
    assert len(simulation.finished) == 1


def test_a_cancelled_sequence_gives_its_pages_back_wherever_it_is():
    simulation = Simulation(slots=1)
    runs, waits = (simulation.add(distinct(i, 20), 5) for i in range(2))
    simulation.step()
    simulation.add(distinct(2, 3), 30, priority=-1)
    simulation.step()
    assert simulation.preempted == [runs]
    for sequence in (runs, waits, *running(simulation)):
        simulation.cancel(sequence)
    assert simulation.kv.num_used_pages() == (0, 0)
    assert simulation.kv.num_sequences == 0
    simulation.kv.check()


PROMPTS = st.builds(
    lambda family, shared, own, length: [family] * shared + [own] * length,
    st.integers(0, 1),
    st.integers(0, 40),
    st.integers(2, 5),
    st.integers(1, 30),
)
REQUESTS = st.fixed_dictionaries(
    {"prompt": PROMPTS, "max_tokens": st.integers(1, 20), "priority": st.integers(0, 2), "step": st.integers(0, 30)}
)


@settings(max_examples=120)
@given(
    requests=st.lists(REQUESTS, min_size=1, max_size=12),
    pools=st.tuples(st.integers(3, 40), st.integers(2, 20)),
    chunk=st.sampled_from([None, 4, 8, 16]),
    slots=st.integers(1, 5),
    step_tokens=st.integers(5, 40),
    restore_steps=st.sampled_from([None, 0, 1, 4]),
    loses=st.booleans(),
    prefix_cache=st.booleans(),
    cancellations=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 11)), max_size=4),
)
def test_whatever_comes_every_sequence_ends_as_if_alone_and_every_page_comes_back(
    requests, pools, chunk, slots, step_tokens, restore_steps, loses, prefix_cache, cancellations
):
    simulation = Simulation(
        num_global=pools[0],
        num_local=pools[1],
        chunk=chunk,
        slots=slots,
        step_tokens=step_tokens,
        restore_steps=restore_steps,
        loses=loses,
        prefix_cache=prefix_cache,
    )
    requests = sorted(requests, key=lambda request: request["step"])
    added, cancelled, step = [], set(), 0
    while len(added) < len(requests) or simulation.scheduler.running or simulation.scheduler.waiting:
        while len(added) < len(requests) and requests[len(added)]["step"] <= step:
            fields = requests[len(added)]
            prompt = fields["prompt"][: simulation.longest - 1]
            max_tokens = min(fields["max_tokens"], simulation.longest - len(prompt))
            added.append(simulation.add(prompt, max_tokens, fields["priority"]))
        for when, index in cancellations:
            if when == step and index < len(added):
                cancelled.add(index)
                simulation.cancel(added[index])
        check_step(simulation)
        step += 1
        assert step < 5000, "somebody waits for ever"
    while simulation.is_restoring:  # for a sequence that was cancelled
        simulation.step()
    assert simulation.kv.num_used_pages() == (0, 0)
    for index, sequence in enumerate(added):
        if sequence in simulation.finished:
            request = sequence.request
            assert sequence.ids == tokens_alone(request.prompt_ids, request.max_tokens)
        else:
            assert index in cancelled


def check_step(simulation: Simulation) -> None:
    """Run a step and check what holds for each."""
    before = simulation.scheduler
    can_do = bool(before.running or before.waiting) and not simulation.is_restoring
    done = simulation.step()
    assert done or not can_do or simulation.is_restoring, "nothing was computed although something was to do"
    assert len(done) == len(simulation.work), "a sequence is in the step twice"
    assert sum(done.values()) <= simulation.limits.step_tokens
    assert len(before.running) <= simulation.limits.slots
    simulation.kv.check()
