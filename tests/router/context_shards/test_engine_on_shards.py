"""An engine whose global layers' keys and values are on context shards generates what it generates without."""

from __future__ import annotations

import pytest

from protos.errors import NoReplica
from tests.router.context_shards.live_shards import PAGE, holder, sharded_engine, start_shard
from tests.router.local_engine import WAIT_S, tokens_alone

PROMPT = tuple(range(3, 3 + 37))
CHUNK_BYTES = 3 * PAGE
"""Of a chunk of eight tokens in a router: three local layers."""


@pytest.mark.parametrize("num_shards", [1, 2, 4])
@pytest.mark.parametrize("segment_tokens", [8, 16])
def test_tokens_are_the_same_on_any_number_of_shards(num_shards, segment_tokens):
    with sharded_engine([start_shard() for _ in range(num_shards)], segment_tokens) as (local, _):
        assert local.ask(PROMPT, 20).tokens() == tokens_alone(PROMPT, 20)


def test_sequences_side_by_side_keep_apart():
    prompts = [PROMPT, PROMPT[5:], PROMPT[:9], PROMPT[::-1]]
    with sharded_engine([start_shard(), start_shard()]) as (local, _):
        streams = [local.ask(prompt, 12, request_id=str(number)) for number, prompt in enumerate(prompts)]
        assert [stream.tokens() for stream in streams] == [tokens_alone(prompt, 12) for prompt in prompts]


def test_segments_spread_over_shards_and_go_when_the_sequence_ends():
    servers = [start_shard(), start_shard()]
    with sharded_engine(servers) as (local, shards):
        total = shards.free_tokens
        held: list[list[int]] = []
        local.transport.watch = lambda: held.append([each.shard.describe().num_segments for each in servers])
        local.ask(PROMPT, 4).tokens()
        assert sorted(held[-1]) == [2, 3]
        local.wait_for(lambda: not any(each.shard.describe().num_segments for each in servers))
        local.wait_for(lambda: shards.free_tokens == total)


def test_a_shard_that_dies_costs_its_segments_alone():
    servers = [start_shard(), start_shard(), start_shard()]
    with sharded_engine(servers) as (local, shards):
        stream = local.ask(PROMPT, 40)
        while len(stream.ids) < 5:
            stream.take()
        servers[0].stop()
        assert stream.tokens() == tokens_alone(PROMPT, 40)
        engine = local.engine
        assert engine._repairs.num_tokens == shards.num_lost_tokens
        assert 8 <= engine._repairs.num_tokens <= 32


def test_a_shard_that_comes_is_used_from_the_next_segment_on():
    servers = [start_shard()]
    with sharded_engine(servers) as (local, shards):
        stream = local.ask(PROMPT, 60)
        while len(stream.ids) < 5:
            stream.take()
        servers.append(start_shard())
        shards.update(map(holder, servers))
        used: list[int] = []
        local.transport.watch = lambda: used.append(servers[1].shard.describe().num_segments)
        assert stream.tokens() == tokens_alone(PROMPT, 60)
        assert max(used) > 1


def test_a_sequence_waits_until_there_is_room_on_the_shards():
    with sharded_engine([start_shard(kv_bytes=7 * PAGE)]) as (local, _):
        streams = [local.ask(PROMPT, 12, request_id=str(number)) for number in range(3)]
        assert [stream.tokens() for stream in streams] == [tokens_alone(PROMPT, 12)] * 3


def test_a_sequence_waits_until_there_is_a_shard():
    with sharded_engine([]) as (local, shards):
        stream = local.ask(PROMPT, 12)
        server = start_shard()
        shards.update([holder(server)])
        assert stream.tokens() == tokens_alone(PROMPT, 12)
        server.stop()


def test_all_shards_may_die_at_once():
    servers = [start_shard(), start_shard()]
    with sharded_engine(servers) as (local, shards):
        stream = local.ask(PROMPT, 40)
        while len(stream.ids) < 5:
            stream.take()
        fresh = start_shard()
        shards.update(map(holder, [*servers, fresh]))
        shards.wait_ready(3, 30)
        for server in servers:
            server.stop()
        assert stream.tokens() == tokens_alone(PROMPT, 40)
        fresh.stop()


def test_a_sequence_waits_while_no_shard_lives_and_goes_on_when_one_starts():
    servers = [start_shard()]
    with sharded_engine(servers) as (local, shards):
        stream = local.ask(PROMPT, 40)
        while len(stream.ids) < 5:
            stream.take()
        servers[0].stop()
        shards.update(())
        local.wait_for(lambda: shards.lacking is not None)
        servers.append(start_shard())
        shards.update([holder(servers[1])])
        assert stream.tokens() == tokens_alone(PROMPT, 40)


def test_sequences_that_all_wait_for_room_make_some_for_each_other():
    servers = [start_shard(kv_bytes=8 * PAGE), start_shard(kv_bytes=4 * PAGE)]
    with sharded_engine(servers, standstill_s=0.2) as (local, _):
        local.hold_when(lambda: local.engine.load().generated_tokens >= 30)
        streams = [local.ask(PROMPT[:9], 30, request_id=str(number)) for number in range(2)]
        assert local.transport.waits.wait(WAIT_S)
        servers.pop().stop()
        local.transport.gate.set()
        assert [stream.tokens() for stream in streams] == [tokens_alone(PROMPT[:9], 30)] * 2
        assert local.engine.load().preemptions > 0


def test_a_sequence_whose_time_is_up_says_that_it_waited_for_room():
    servers = [start_shard()]
    with sharded_engine(servers) as (local, shards):
        stream = local.ask(PROMPT, 80, timeout_s=2.0)
        while len(stream.ids) < 5:
            stream.take()
        servers[0].stop()
        shards.update(())
        error = stream.error()
        assert isinstance(error, NoReplica)
        assert "within 2 s" in error.message
        assert "add shards" in error.message


def test_a_stream_that_breaks_and_comes_back_loses_nothing():
    servers = [start_shard(), start_shard()]
    with sharded_engine(servers) as (local, shards):
        stream = local.ask(PROMPT, 40)
        while len(stream.ids) < 5:
            stream.take()
        for each in shards._streams.values():
            each.reset()
        assert stream.tokens() == tokens_alone(PROMPT, 40)
        assert shards.num_lost_tokens == 0


def test_cancelled_sequences_leave_nothing_and_harm_nobody():
    servers = [start_shard(), start_shard()]
    with sharded_engine(servers) as (local, shards):
        total = shards.free_tokens
        stays = local.ask(PROMPT, 40, request_id="stays")
        for number in range(12):
            leaves = local.ask(PROMPT[number:], 40, request_id=f"leaves {number}")
            while len(leaves.ids) < number % 4:
                leaves.take()
            local.engine.cancel(f"leaves {number}")
        assert stays.tokens() == tokens_alone(PROMPT, 40)
        assert shards.num_lost_tokens == 0
        local.wait_for(lambda: shards.free_tokens == total)
        assert not any(each.shard.describe().num_segments for each in servers)


def test_a_preempted_sequence_keeps_what_is_on_the_shards():
    page = 8 * 2 * 2 * 8 * 4 * 3  # tokens, of three local layers
    with sharded_engine([start_shard(), start_shard()], kv_bytes=2 * page) as (local, _):
        streams = [local.ask(PROMPT, 30, request_id=str(number)) for number in range(3)]
        assert [stream.tokens() for stream in streams] == [tokens_alone(PROMPT, 30)] * 3


def test_of_sequences_that_are_alike_one_may_be_cancelled_before_its_first_step():
    servers = [start_shard()]
    with sharded_engine(servers) as (local, shards):
        total = shards.free_tokens
        local.hold_when(lambda: local.engine.load().running == 4)
        streams = [local.ask(PROMPT, 12, request_id=str(number)) for number in range(4)]
        assert local.transport.waits.wait(WAIT_S)
        local.engine.cancel("3")
        local.wait_for(lambda: local.engine.load().running == 3)
        local.transport.gate.set()
        assert [stream.tokens() for stream in streams[:3]] == [tokens_alone(PROMPT, 12)] * 3
        local.wait_for(lambda: not servers[0].shard.describe().num_segments)
        local.wait_for(lambda: shards.free_tokens == total)


@pytest.mark.parametrize("slots", [1, 2])
def test_lost_segments_are_computed_again_though_all_pages_of_local_layers_are_taken(slots):
    servers = [start_shard()]
    with sharded_engine(servers, slots=slots, kv_bytes=slots * CHUNK_BYTES) as (local, shards):
        streams = [local.ask(PROMPT, 40, request_id=str(number)) for number in range(slots)]
        for stream in streams:
            while len(stream.ids) < 7:
                stream.take()
        servers.append(start_shard())
        shards.update(map(holder, servers))
        assert shards.wait_ready(2, WAIT_S)
        servers[0].stop()
        assert [stream.tokens() for stream in streams] == [tokens_alone(PROMPT, 40)] * slots


def test_one_sequence_makes_room_where_one_is_enough():
    servers = [start_shard(kv_bytes=16 * PAGE), start_shard(kv_bytes=4 * PAGE)]
    with sharded_engine(servers, standstill_s=2.0) as (local, _):
        local.hold_when(lambda: local.engine.load().generated_tokens >= 40)
        streams = [local.ask(PROMPT[:9], 30, request_id=str(number)) for number in range(4)]
        assert local.transport.waits.wait(WAIT_S)
        servers.pop().stop()
        local.transport.gate.set()
        assert [stream.tokens() for stream in streams] == [tokens_alone(PROMPT[:9], 30)] * 4
        assert local.engine.load().preemptions <= 1


def test_who_waits_with_segments_makes_room_for_who_runs():
    servers = [start_shard(kv_bytes=8 * PAGE), start_shard(kv_bytes=5 * PAGE)]
    with sharded_engine(servers, slots=1, standstill_s=0.2) as (local, _):
        low = local.ask(PROMPT, 11, request_id="low", priority=5)
        while len(low.ids) < 6:
            low.take()
        local.hold_when(lambda: local.engine.load().waiting == 1 and local.engine.load().generated_tokens > 30)
        high = local.ask(PROMPT[:9], 40, request_id="high", priority=0)
        assert local.transport.waits.wait(WAIT_S)
        servers.pop().stop()
        local.transport.gate.set()
        assert high.tokens() == tokens_alone(PROMPT[:9], 40)
        assert low.tokens() == tokens_alone(PROMPT, 11)


def test_every_prompt_token_is_reported_once_though_its_sequence_was_preempted():
    servers = [start_shard()]
    with sharded_engine(servers, slots=1) as (local, _):
        undisturbed = local.ask(PROMPT, 4, request_id="alone", prompt_logprobs=0)
        undisturbed.tokens()
        local.hold_when(lambda: servers[0].shard.describe().num_segments >= 3)
        low = local.ask(PROMPT, 4, request_id="low", priority=5, prompt_logprobs=0)
        assert local.transport.waits.wait(WAIT_S)
        high = local.ask(PROMPT[:9], 4, request_id="high", priority=0)
        local.transport.gate.set()
        high.tokens()
        low.tokens()
        assert local.engine.load().preemptions == 1
        assert [each.token_id for each in low.logprobs] == list(PROMPT)
        expected = [each.logprob for each in undisturbed.logprobs]
        assert [each.logprob for each in low.logprobs] == pytest.approx(expected, abs=1e-4)
