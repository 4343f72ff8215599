"""The engine when there is not room for all: who makes way, that no token changes for it, and that nothing is left."""

from __future__ import annotations

import random

import pytest

from protos import errors
from router.request import PromptDone, SamplingParams
from tests.router.local_engine import WAIT_S, LocalEngine, local_engine, tokens_alone
from tests.tiny import TINY

PAGE = 8
LAYER_PAGE_BYTES = 2 * PAGE * TINY.num_kv_heads * TINY.head_size * 4
PLENTY = 10_000_000
FIRST, URGENT = tuple(range(3, 23)), tuple(range(40, 45))


def random_requests(seed: int, num: int) -> list[tuple[tuple[int, ...], int, SamplingParams]]:
    """Return requests that start small and grow, so that more start than find room to the end."""
    chance = random.Random(seed)
    prefix = tuple(chance.randrange(3, 96) for _ in range(12))
    requests = []
    for index in range(num):
        own = tuple(chance.randrange(3, 96) for _ in range(chance.randrange(1, 6)))
        sampling = SamplingParams(temperature=float(index % 2), seed=index)
        requests.append((prefix[: chance.choice((0, 5, 12))] + own, chance.randrange(20, 40), sampling))
    return requests


@pytest.mark.parametrize("host_kv_bytes", [0, PLENTY], ids=["recompute", "host"])
@pytest.mark.parametrize("prefix_cache", [False, True])
@pytest.mark.parametrize("num_pages", [9, 13])
def test_sequences_that_make_room_get_the_tokens_they_get_alone(num_pages, prefix_cache, host_kv_bytes):
    requests = random_requests(seed=num_pages, num=9)
    limits = {"kv_bytes": cache_bytes(num_pages, num_local=4), "context_length": 64, "host_kv_bytes": host_kv_bytes}
    with local_engine(prefix_cache=prefix_cache, **limits) as local:
        local.transport.gate.clear()
        streams = [
            local.ask(prompt, max_tokens, f"r{i}", sampling=sampling, priority=i % 3)
            for i, (prompt, max_tokens, sampling) in enumerate(requests)
        ]
        local.transport.gate.set()
        for stream, (prompt, max_tokens, sampling) in zip(streams, requests, strict=True):
            assert stream.tokens() == tokens_alone(prompt, max_tokens, sampling)
        assert local.engine.load().preemptions


def test_the_more_urgent_request_comes_first_and_the_other_goes_on_where_it_was():
    with local_engine(slots=1, host_kv_bytes=PLENTY) as local:
        first, urgent = preempt(local)
        local.transport.gate.set()
        assert urgent.tokens() == tokens_alone(URGENT, 4)
        before = local.transport.num_tokens
        assert first.tokens() == tokens_alone(FIRST, 60)
        assert local.transport.num_tokens - before <= 60 - 2, "its prompt was computed again"
        assert local.engine.load().preemptions == 1


def test_the_prompt_is_reported_once_however_often_it_is_computed():
    with local_engine(slots=1, prefix_cache=False) as local:
        first, _ = preempt(local)
        local.transport.gate.set()
        events = []
        while first.last is None:
            events.append(first.take())
        assert not any(isinstance(event, PromptDone) for event in events)
        assert first.ids == tokens_alone(FIRST, 60)


def test_scores_of_a_prompt_that_made_room_half_way_are_complete():
    prompt = tuple(range(3, 83))
    with local_engine() as local:
        alone = local.ask(prompt, 1, prompt_logprobs=0)
        alone.tokens()
    for host_kv_bytes in (0, PLENTY):
        with local_engine(slots=1, host_kv_bytes=host_kv_bytes) as local:
            local.transport.gate.clear()
            scored = local.ask(prompt, 1, "scored", prompt_logprobs=0)
            assert local.transport.waits.wait(WAIT_S)
            local.ask(URGENT, 1, "urgent", priority=-1)
            local.transport.gate.set()
            scored.tokens()
            assert local.engine.load().preemptions == 1
            assert [report.token_id for report in scored.logprobs] == list(prompt)
            found, expected = ([report.logprob for report in stream.logprobs] for stream in (scored, alone))
            assert found == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("host_kv_bytes", [0, PLENTY], ids=["recompute", "host"])
@pytest.mark.parametrize("leaves", ["cancelled", "late"])
def test_a_sequence_that_leaves_after_it_made_room_leaves_nothing(leaves, host_kv_bytes):
    with local_engine(slots=1, host_kv_bytes=host_kv_bytes) as local:
        first, urgent = preempt(local)
        load = local.engine.load()
        assert (load.running, load.waiting) == (1, 1)
        if leaves == "cancelled":
            local.engine.cancel("first")
        else:
            (sequence,) = local.engine._scheduler.waiting
            sequence.deadline = 0.0
        local.wait_for(lambda: local.engine.load().waiting == 0)
        local.transport.gate.set()
        assert urgent.tokens() == tokens_alone(URGENT, 4)
        if leaves == "late":
            assert isinstance(first.error(), errors.DeadlineExceeded)


def test_stopping_ends_a_sequence_that_made_room():
    with local_engine(slots=1, host_kv_bytes=PLENTY) as local:
        first, urgent = preempt(local)
        local.engine.stop()
        assert isinstance(first.error(), errors.ReplicaUnavailable)
        assert isinstance(urgent.error(), errors.ReplicaUnavailable)


def test_a_failed_step_spares_the_sequence_that_made_room_for_it():
    with local_engine(slots=1, host_kv_bytes=PLENTY) as local:
        first, urgent = preempt(local)
        local.transport.failure = errors.NoReplica("no replica holds expert 3: start one")
        local.transport.gate.set()
        assert isinstance(urgent.error(), errors.NoReplica)
        assert first.tokens() == tokens_alone(FIRST, 60)


@pytest.mark.parametrize("leaves", ["cancelled", "late"])
def test_a_waiting_sequence_that_leaves_leaves_nothing(leaves):
    with local_engine(slots=1) as local:
        local.transport.gate.clear()
        first = local.ask(FIRST, 4, "first")
        waiting = local.ask(URGENT, 4, "waiting", timeout_s=3600)
        local.wait_for(lambda: local.transport.waits.is_set() and len(local.engine._scheduler.waiting) == 1)
        if leaves == "cancelled":
            local.engine.cancel("waiting")
        else:
            (sequence,) = local.engine._scheduler.waiting
            sequence.deadline = 0.0
        local.wait_for(lambda: local.engine.load().waiting == 0)
        local.transport.gate.set()
        assert first.tokens() == tokens_alone(FIRST, 4)
        if leaves == "late":
            assert isinstance(waiting.error(), errors.DeadlineExceeded)
        else:
            assert waiting.is_silent


def test_a_prompt_of_forty_chunks_never_holds_more_local_pages_than_a_chunk_and_a_step():
    prompt = tuple(3 + i % 90 for i in range(40 * TINY.attention_chunk))
    with local_engine({"max_positions": 512}, context_length=512) as local:
        most = [0]
        local.transport.watch = lambda: most.__setitem__(0, max(most[0], local.engine._kv.num_used_pages()[1]))
        stream = local.ask(prompt, 20)
        tokens = stream.tokens()
        assert 1 <= most[0] <= (TINY.attention_chunk + 16) // PAGE
    with local_engine(
        {"max_positions": 512}, context_length=512, kv_bytes=cache_bytes(64, num_local=2), step_tokens=64
    ) as local:
        assert local.ask(prompt, 20).tokens() == tokens


def cache_bytes(num_global: int, num_local: int) -> int:
    """Return the bytes of so many pages for the one global and the three local layers."""
    return LAYER_PAGE_BYTES * (num_global + 3 * num_local)


def preempt(local: LocalEngine):
    """Let a request generate, and return it and a more urgent one whose step waits at the gate."""
    local.hold_when(lambda: local.engine._next_tokens.num_chosen == 3)
    first = local.ask(FIRST, 60, "first", timeout_s=3600)
    for _ in range(4):  # the prompt's end and three tokens
        first.take()
    assert local.transport.waits.wait(WAIT_S)
    urgent = local.ask(URGENT, 4, "urgent", priority=-1)
    local.hold_when(lambda: local.engine._scheduler.num_preemptions == 1)
    local.go_on_until_held()
    return first, urgent
