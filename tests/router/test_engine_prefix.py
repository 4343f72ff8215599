"""The engine's prefix cache: what is computed once is not computed again, and no token changes for it."""

from __future__ import annotations

import pytest
import torch

from protos import errors
from router.request import SamplingParams
from tests.router.local_engine import local_engine, tokens_alone
from tests.tiny import TINY

PAGE = 8  # the chunk's length bounds it
PROMPT = tuple(range(3, 91))
LONG = PROMPT + tuple(range(10, 22))


@pytest.mark.parametrize(("num_prompt", "num_left"), [(100, 4), (96, 8), (97, 1)])
def test_a_second_identical_prompt_costs_its_last_page(num_prompt, num_left):
    prompt = LONG[:num_prompt]
    with local_engine() as local:
        first = local.ask(prompt, 1)
        assert first.tokens() == tokens_alone(prompt, 1)
        before = local.transport.num_tokens
        second = local.ask(prompt, 1)
        assert second.tokens() == first.ids
        assert (first.num_cached, second.num_cached) == (0, num_prompt - num_left)
        assert local.transport.num_tokens - before == num_left


@pytest.mark.parametrize("num_shared", [3, 7, 8, 9, 16, 20, 40, 88])
def test_prompts_that_begin_alike_get_the_tokens_they_get_alone(num_shared):
    prompts = [(*PROMPT[:num_shared], other, 5, other) for other in (91, 92)]
    with local_engine() as local:
        for index, prompt in enumerate(prompts):
            stream = local.ask(prompt, 12)
            assert stream.tokens() == tokens_alone(prompt, 12)
            assert stream.num_cached == (num_shared // PAGE * PAGE if index else 0)


def test_the_same_tokens_elsewhere_are_not_the_same():
    shifted = (95, *PROMPT[:40])
    with local_engine() as local:
        local.ask(PROMPT[:40], 4).tokens()
        stream = local.ask(shifted, 4)
        assert stream.tokens() == tokens_alone(shifted, 4)
        assert stream.num_cached == 0


def test_what_was_generated_is_found_by_the_next_turn_of_a_conversation():
    with local_engine() as local:
        answer = local.ask(PROMPT[:20], 30).tokens()
        turn = (*PROMPT[:20], *answer, 7, 8)
        stream = local.ask(turn, 8)
        assert stream.tokens() == tokens_alone(turn, 8)
        assert stream.num_cached == 48  # of 50 the last one is not in the cache: its successor was never computed


def test_siblings_submitted_together_share_the_prompts_pages():
    prompt, num = (*PROMPT[:64], 5), 4
    samplings = [SamplingParams(temperature=1.0, seed=seed) for seed in range(num)]
    expected = [tokens_alone(prompt, 6, sampling) for sampling in samplings]
    with local_engine() as local:
        peaks = [0, 0]
        local.transport.watch = lambda: peaks.__setitem__(0, max(peaks[0], local.engine._kv.num_used_pages()[0]))
        streams = [local.ask(prompt, 6, f"r{i}", sampling=sampling) for i, sampling in enumerate(samplings)]
        assert [stream.tokens() for stream in streams] == expected
        assert local.transport.num_tokens == 65 + 5 + (num - 1) * (1 + 5)
    assert len({tuple(tokens) for tokens in expected}) == num
    one = (65 + 5) // PAGE + 1
    assert peaks[0] <= one + num - 1 < num * one


def test_siblings_go_on_without_the_one_they_waited_for():
    with local_engine() as local:
        local.transport.gate.clear()
        first, *others = [local.ask(LONG, 4, f"r{i}") for i in range(3)]
        local.wait_for(lambda: local.transport.waits.is_set() and local.engine.load().waiting == 2)
        local.engine.cancel("r0")
        local.transport.gate.set()
        assert [stream.tokens() for stream in others] == [tokens_alone(LONG, 4)] * 2
        assert first.is_silent


def test_logits_of_a_whole_prompt_are_computed_although_it_is_cached():
    with local_engine() as local:
        alone = local.ask(LONG, 1, prompt_logprobs=2)
        alone.tokens()
        again = local.ask(LONG, 1, prompt_logprobs=2)
        assert again.tokens() == alone.ids
        assert again.num_cached == 0
        found, expected = ([report.logprob for report in stream.logprobs] for stream in (again, alone))
        assert len(found) == len(LONG)
        assert found == pytest.approx(expected, abs=1e-4)
        assert local.ask(LONG, 1).tokens() == alone.ids


def test_a_cache_that_is_switched_off_is_asked_nothing():
    with local_engine(prefix_cache=False) as local:
        for _ in range(2):
            stream = local.ask(LONG, 1)
            stream.tokens()
            assert stream.num_cached == 0
        assert local.transport.num_tokens == 2 * len(LONG)


def test_load_tells_what_the_cache_had():
    with local_engine() as local:
        for _ in range(2):
            local.ask(LONG, 1).tokens()
        load = local.engine.load()
        assert (load.prompt_tokens, load.cached_tokens) == (200, 96)
        num_global, num_local = local.engine._kv.num_kept_pages()
        assert num_global == 12
        assert num_local
        kept_bytes = local.engine.layout.pages_bytes(num_global, num_local)
        local.wait_for(lambda: local.engine.load().kv_cached_bytes == kept_bytes)


@pytest.mark.parametrize("num_pages", [7, 9, 14])
def test_pages_that_are_needed_are_evicted_and_computed_again(num_pages):
    prompts = [PROMPT[i : i + 40] for i in (0, 7, 0, 3, 7, 0)]
    with local_engine(kv_bytes=num_pages * page_bytes(), context_length=56) as local:
        for prompt in prompts:
            assert local.ask(prompt, 8).tokens() == tokens_alone(prompt, 8)


def test_nobody_reads_pages_that_a_failing_replica_filled_with_nonsense():
    with local_engine() as local:
        local.transport.poison = 4 * 3
        assert isinstance(local.ask(LONG, 1).error(), errors.InternalError)
        local.transport.poison = 0
        again = local.ask(LONG, 4)
        assert again.tokens() == tokens_alone(LONG, 4)
        assert again.num_cached == 0


# Largest difference of a prompt's log-probabilities, in nats: two to three times the 0.03 (bfloat16), 0.06 (int8) and
# 0.4 (fp8, 3 bits of mantissa and no scale) found for this model. Zeros for keys or values move them by 3 or more.
KV_TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1, "int8": 0.15, "fp8": 1.0}


@pytest.mark.parametrize("kv_dtype", KV_TOLERANCE)
def test_a_narrower_cache_gives_nearly_the_same_logits(kv_dtype):
    found = {}
    for name in ("float32", kv_dtype):
        # One expert: a route that rounding turns would hide what is tested.
        with local_engine({"num_experts": 1}, kv_dtype=name) as local:
            stream = local.ask(LONG, 1, prompt_logprobs=0)
            stream.tokens()
            found[name] = torch.tensor([report.logprob for report in stream.logprobs])
    difference = (found[kv_dtype] - found["float32"]).abs().max()
    assert difference <= KV_TOLERANCE[kv_dtype]
    assert (difference > 1e-4) == (kv_dtype != "float32"), "the cache was not read, or not in this dtype"


def page_bytes() -> int:
    """Return the bytes of a page of each kind."""
    return 2 * PAGE * TINY.num_kv_heads * TINY.head_size * 4 * TINY.num_layers
