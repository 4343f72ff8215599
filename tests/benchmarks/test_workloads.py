"""What is read off an engine's answer."""

from __future__ import annotations

import pytest

from benchmarks.peers.workloads import Workload, count_agreeing, measure

DECODE = Workload(name="decode-2", prompts=2, prompt_tokens=10, max_tokens=4)
PREFILL = Workload(name="prompt-2x10", prompts=2, prompt_tokens=10, max_tokens=1)


def test_decoding_is_timed_from_the_last_starters_first_token():
    found = measure(DECODE, {"arrivals_s": [[1.0, 2.0, 3.0, 4.0], [2.5, 3.5, 4.5, 6.5]]})
    # After 2.5 s: two tokens of the first sequence, three of the second, until 6.5 s.
    assert found.rate == pytest.approx(5 / 4)
    assert found.total_rate == pytest.approx(8 / 6.5)
    assert (found.first_token_s, found.last_first_token_s, found.seconds) == (1.0, 2.5, 6.5)


def test_prompt_speed_is_timed_to_the_last_first_token():
    assert measure(PREFILL, {"arrivals_s": [[0.5], [2.0]]}).rate == pytest.approx(10)


def test_prompts_are_the_same_for_every_engine_and_differ_between_rounds():
    assert DECODE.make_prompts(100, "round 1") == DECODE.make_prompts(100, "round 1")
    assert DECODE.make_prompts(100, "round 1") != DECODE.make_prompts(100, "round 2")


def test_prompts_of_a_workload_have_no_common_beginning():
    first, second = DECODE.make_prompts(32_000, "round 1")
    assert first[0] != second[0]
    assert len(first) == len(second) == 10


def test_agreement_ends_at_the_first_token_that_differs():
    assert count_agreeing([[1, 2, 3], [4, 5, 6]], [[1, 9, 3], [4, 5, 6]]) == 4
