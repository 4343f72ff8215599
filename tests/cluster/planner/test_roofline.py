"""Speeds: answers worked out by hand, and the shape of a prompt's time."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.planner.capacity_plan import best_plan, candidates
from cluster.planner.roofline import (
    DISPATCH,
    EXPERTS,
    KV,
    OWN,
    SHARDS,
    SHARED,
    Roofline,
    busiest_group,
    distinct_experts,
    visible_tokens,
)
from tests.cluster.planner.questions import ask

READ = 0.74 * 3.35e12
"""Bytes per second that an H100 is taken to read."""


def roofline(shape=None, **question):
    found = candidates(ask("scout", question.pop("fleet", "8xh100"), **question))
    return next(Roofline(plan.memory) for plan in found if shape is None or shape(plan.placement.shape))


def test_a_batch_reaches_as_many_experts_as_chance_says():
    assert distinct_experts(16, 32) == pytest.approx(14.0, abs=0.05)
    assert distinct_experts(128, 32) == pytest.approx(28.4, abs=0.05)
    assert distinct_experts(128, 128) == pytest.approx(81.1, abs=0.05)
    assert distinct_experts(8, 1, per_token=2) == pytest.approx(2)


@pytest.mark.parametrize(("size", "groups", "chance"), [(1, 1, 0.3), (2, 2, 0.5), (3, 2, 0.2), (2, 3, 1.0)])
def test_the_busiest_group_runs_as_many_experts_as_counting_every_case_says(size, groups, chance):
    total = 0.0
    for case in itertools.product((0, 1), repeat=size * groups):
        odds = chance ** sum(case) * (1 - chance) ** (size * groups - sum(case))
        total += odds * max(sum(case[group * size : (group + 1) * size]) for group in range(groups))
    assert busiest_group(size, groups, chance) == pytest.approx(total)


@given(st.integers(0, 300), st.none() | st.integers(1, 40))
def test_queries_see_their_chunk_up_to_themselves(num_tokens, chunk):
    seen = sum(position % (chunk or num_tokens) + 1 for position in range(num_tokens))
    assert visible_tokens(num_tokens, chunk) == seen


def test_one_sequence_of_scout_reads_the_published_bytes_per_token():
    step = roofline(fleet="h100", weights="int4", context=2, concurrency=1).decode(2, 1)
    read = sum(step.parts[part] for part in (OWN, SHARED, EXPERTS)) * READ
    # Attention, shared and routed expert in int4, the LM head in int8.
    assert read == pytest.approx(1.557e9 + 2 * 3.114e9 + 1.035e9, rel=0.01)


def test_one_sequence_in_bf16_reads_a_routers_weights_and_one_expert_per_layer():
    step = roofline(context=2, concurrency=1).decode(2, 1)
    read = sum(step.parts[part] for part in (OWN, SHARED)) * READ
    assert read == pytest.approx(20.2e9, rel=0.01)
    assert step.parts[EXPERTS] * READ == pytest.approx(48 * 251_658_240, rel=0.01)
    assert step.parts[DISPATCH] == pytest.approx(48 * 450e-6, rel=0.01)


def test_a_decoding_step_reads_global_layers_whole_and_local_ones_within_a_chunk():
    line = roofline(lambda shape: not shape.shards, context=8192, concurrency=1)
    kv = {context: line.decode(context, 1).parts[KV] * READ for context in (4096, 8192, 1_000_000)}
    assert kv[4096] == pytest.approx(4096 * 196_608)
    assert kv[8192] == pytest.approx(8192 * 196_608)
    assert kv[1_000_000] == pytest.approx(1_000_000 * 49_152 + 1_207_959_552)


def test_a_prompt_takes_a_n_plus_b_n_squared_with_b_from_global_layers_only():
    line = roofline(lambda shape: not shape.shards, context=8192, concurrency=1)
    step = line.memory.step_tokens
    one, two, four = (line.prefill(count * 16 * step).parts[KV] for count in (1, 2, 4))
    # Whole chunks: a n + b n^2 exactly, so that b is the second difference; 4 H C operations a pair in 12 layers.
    n = 16 * step
    b = (two / 2 - one) / (n * n)
    assert b * n * n == pytest.approx(4 * 40 * 128 * 12 * n * n / 2 / (0.41 * 989e12), rel=1e-6)
    assert four == pytest.approx(4 * (one - b * n * n) + 16 * b * n * n)


def test_a_million_tokens_of_scout_are_read_at_the_rate_that_was_published():
    # 2.85 M tokens in 335 s on 8 H200 is where the share of the arithmetic comes from.
    line = roofline(lambda shape: not shape.shards, fleet="8xh200", context=8192, concurrency=1)
    prompt = line.prefill(2_850_000).parts
    assert sum(prompt[part] for part in (OWN, KV, SHARED)) / 8 == pytest.approx(335, rel=0.15)


def test_shards_divide_the_quadratic_part():
    times = {
        count: roofline(
            lambda shape, count=count: shape.shards == count, fleet="2x8xh100", context=4_000_000, concurrency=1
        )
        for count in (4, 8)
    }
    for measure in (lambda line: line.prefill(4_000_000), lambda line: line.decode(4_000_000, 1)):
        four, eight = (measure(times[count]).parts[SHARDS] for count in (4, 8))
        assert four == pytest.approx(2 * eight)


def test_more_sequences_never_take_a_shorter_step():
    plan = best_plan(ask("scout", "8xh100", context=1024, concurrency=64))
    assert plan is not None
    line = Roofline(plan.memory)
    steps = [line.decode(1024, count).seconds for count in (1, 2, 4, 16, 64)]
    assert steps == sorted(steps)
