import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.bench.lengths import parse_lengths
from cluster.bench.load import clip_lengths, plan_load
from cluster.bench.settings import OpenLoop, Replay
from tests.cluster.bench.measured import settings


def plan(context_length=None, **changes):
    return plan_load(settings(**changes), context_length)


def test_a_closed_loop_has_requests_without_times():
    load = plan(requests=3)
    assert load.count == 3
    assert [(each.index, each.at_s, each.prompt_tokens, each.max_tokens) for each in load.requests()] == [
        (0, None, 8, 3),
        (1, None, 8, 3),
        (2, None, 8, 3),
    ]


def test_a_load_is_the_same_every_time_it_is_planned():
    prompts = {"input": parse_lengths("4-40", ""), "output": parse_lengths("1-9", "")}
    arrival = OpenLoop(rate_per_s=5.0)
    first = list(plan(arrival=arrival, prompts=prompts, requests=20).requests())
    assert first == list(plan(arrival=arrival, prompts=prompts, requests=20).requests())
    assert first != list(plan(arrival=arrival, prompts=prompts, requests=20, seed=1).requests())
    assert len({each.prompt_tokens for each in first}) > 5


def test_lengths_do_not_depend_on_how_requests_arrive():
    prompts = {"input": parse_lengths("4-40", "")}
    closed = [each.prompt for each in plan(prompts=prompts).requests()]
    assert closed == [each.prompt for each in plan(prompts=prompts, arrival=OpenLoop(rate_per_s=1.0)).requests()]


def test_an_open_loop_ends_at_its_duration_or_its_last_request():
    arrival = OpenLoop(rate_per_s=100.0)
    timed = plan(arrival=arrival, requests=None, duration_s=1.0)
    times = [each.at_s for each in timed.requests()]
    assert timed.count is None
    assert 50 < len(times) < 150
    assert times == sorted(times)
    assert times[-1] < 1.0
    assert len(list(plan(arrival=arrival, requests=7, duration_s=1.0).requests())) == 7


def mooncake(tmp_path, rows):
    path = tmp_path / "trace.jsonl"
    names = ("timestamp", "input_length", "output_length", "hash_ids")
    path.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
    return path


def test_a_trace_is_replayed_at_its_times_scaled(tmp_path):
    path = mooncake(tmp_path, [(0, 600, 5, [1, 2]), (2000, 520, 7, [1, 3]), (9000, 5, 1, [4])])
    load = plan(arrival=Replay(path=path, time_scale=0.5, limit=2), requests=None)
    one, other = load.requests()
    assert load.count == 2
    assert [(each.at_s, each.prompt_tokens, each.max_tokens) for each in (one, other)] == [(0, 600, 5), (1.0, 520, 7)]
    assert one.prompt[:512] == other.prompt[:512]
    assert one.prompt[512:520] != other.prompt[512:]


def test_a_replay_is_cut_to_what_the_server_holds(tmp_path):
    path = mooncake(tmp_path, [(0, 600, 5, [1, 2]), (0, 10, 5, [9])])
    load = plan(context_length=128, arrival=Replay(path=path), requests=None)
    found = [(each.prompt_tokens, each.max_tokens) for each in load.requests()]
    assert (found, load.num_clipped) == ([(123, 5), (10, 5)], 1)


def test_other_loads_are_cut_only_when_told_to():
    assert next(plan(context_length=4).requests()).prompt_tokens == 8
    clipped = plan(prompts={"max_context": 6})
    assert [(each.prompt_tokens, each.max_tokens) for each in clipped.requests()] == [(3, 3)] * 4
    assert clipped.num_clipped == 4


def test_warm_up_requests_are_as_long_as_the_first_ones_with_other_prompts():
    load = plan(warmup=2, prompts={"input": parse_lengths("4-40", ""), "max_context": 8})
    warm, measured = list(load.warmup()), list(load.requests())
    assert [each.prompt_tokens for each in warm] == [each.prompt_tokens for each in measured[:2]]
    assert [each.prompt for each in warm] != [each.prompt for each in measured[:2]]
    assert {each.at_s for each in warm} == {None}


def test_a_warm_up_does_not_fill_the_cache_of_a_replay(tmp_path):
    path = mooncake(tmp_path, [(0, 600, 5, [1, 2])])
    load = plan(arrival=Replay(path=path), requests=None, warmup=1)
    assert next(load.warmup()).prompt[:512] != next(load.requests()).prompt[:512]


def test_chats_and_given_texts_are_texts():
    assert next(plan(endpoint={"is_chat": True}).requests()).prompt.count(" ") == 7
    texts = plan(prompts={"texts": ("hi", "ho")})
    assert [each.prompt for each in texts.requests()] == ["hi", "ho", "hi", "ho"]
    assert next(texts.requests()).prompt_tokens is None


@given(st.integers(1, 1000), st.integers(1, 1000), st.integers(2, 500))
def test_clipped_lengths_fit_and_change_no_more_than_they_must(prompt, answer, context):
    clipped = clip_lengths(prompt, answer, context)
    assert 1 <= clipped[0] <= prompt
    assert 1 <= clipped[1] <= answer
    assert sum(clipped) == min(prompt + answer, context)


@pytest.mark.parametrize(("prompt", "answer", "clipped"), [(90, 20, (80, 20)), (20, 90, (20, 80)), (90, 90, (50, 50))])
def test_the_longer_side_gives_way_first(prompt, answer, clipped):
    assert clip_lengths(prompt, answer, 100) == clipped
