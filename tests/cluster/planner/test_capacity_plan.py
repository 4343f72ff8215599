from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from cluster.planner.advice import plan_or_refuse, ways_out
from cluster.planner.capacity_plan import best_plan, candidates
from cluster.planner.hardware import parse_fleet
from protos.errors import NotEnoughMemory
from tests.cluster.planner.questions import PROFILES, ask, ask_profile
from tests.cluster.planner.test_model_bytes import TINY_DENSE


@pytest.mark.parametrize("profile", PROFILES)
def test_every_profile_of_the_chart_can_be_planned(profile):
    question = ask_profile(profile)
    plan = best_plan(question)
    assert plan is not None
    assert plan.memory.fits(question.context, question.concurrency)
    assert plan.placement.shape.copies >= question.copies
    assert plan.tokens_per_s > 0
    assert plan.prompt.seconds > plan.step.seconds > 0


def test_a_device_is_shared_only_where_nothing_else_holds_what_is_asked():
    question = ask("scout", "8xh100")
    assert any(plan.placement.is_shared for plan in candidates(question))
    best = best_plan(question)
    assert best is not None
    assert not best.placement.is_shared
    tight = best_plan(ask("scout", "4xh100", context=8192, concurrency=1, weights="fp8", copies=2))
    assert tight is not None
    assert tight.placement.is_shared


def test_nothing_that_holds_what_is_asked_and_shares_nothing_is_faster():
    question = ask("scout", "8xh200", context=131_072, concurrency=8)
    best = best_plan(question)
    assert best is not None
    for plan in candidates(question):
        if plan.memory.fits(question.context, question.concurrency) and not plan.placement.is_shared:
            assert plan.tokens_per_s <= best.tokens_per_s / 0.99


def test_a_dense_model_is_planned_without_experts():
    question = replace(ask("scout", "2xh100", context=16), config=replace(TINY_DENSE, max_positions=4096))
    plan = best_plan(question)
    assert plan is not None
    assert plan.placement.shape.groups == 0
    assert plan.memory.device_bytes(0)["experts"] == 0


REFUSED = {
    "weights": ask("scout", "h100", context=8192, concurrency=2),
    "one router": ask("maverick", "h100", context=8192, concurrency=1),
    "cache": ask("scout", "4xh100", context=1_048_576, concurrency=8),
    "copies": ask("scout", "4xh100", context=8192, concurrency=2, copies=3),
    "CPU": ask("scout", "cpu", 100 * 10**9, weights="fp32", kv_dtype="float32", context=8192, concurrency=1),
}


@pytest.mark.parametrize("name", REFUSED)
def test_every_way_out_of_a_refusal_leads_out(name):
    question = REFUSED[name]
    with pytest.raises(NotEnoughMemory):
        plan_or_refuse(question)
    ways = list(ways_out(question))
    assert ways
    for way in ways:
        assert best_plan(follow(question, way)) is not None, way


def follow(question, way):
    """Return the question changed as a way out says."""
    words = way.split()
    for option, value in itertools.pairwise(words):
        if option == "--gpus":
            question = replace(question, fleet=parse_fleet(value.rstrip(","), int(question.fleet.device.memory_bytes)))
        elif option == "--quantize":
            question = replace(question, weights=value)
        elif option == "--kv-dtype":
            question = replace(question, kv_dtype=value)
        elif option in ("--context", "--concurrency", "--copies"):
            question = replace(question, **{option.removeprefix("--"): int(value)})
    return question


def test_a_refusal_says_what_was_needed_and_what_was_found():
    with pytest.raises(NotEnoughMemory) as caught:
        plan_or_refuse(REFUSED["weights"])
    for words in ("expected room for scout in bf16", "193.3 GB", "found 1xh100 of 80.0 GB", "--quantize int4"):
        assert words in caught.value.message
    with pytest.raises(NotEnoughMemory) as caught:
        plan_or_refuse(REFUSED["cache"])
    for words in (
        "8 x 1,048,576 tokens",
        "422.0 GB of keys and values",
        "--context",
        "--concurrency",
        "context shards",
    ):
        assert words in caught.value.message
