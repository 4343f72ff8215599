"""An engine whose global layers' keys and values are on context shards generates what it generates without."""

from __future__ import annotations

import pytest

from protos.errors import NoReplica
from tests.router.context_shards.live_shards import holder, sharded_engine, start_shard
from tests.router.local_engine import WAIT_S, tokens_alone

PROMPT = tuple(range(3, 3 + 37))


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
    page = 8 * 2 * 2 * 8 * 4  # tokens, of one layer's keys and values, two heads of eight, float32
    with sharded_engine([start_shard(kv_bytes=7 * page)]) as (local, _):
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
    page = 8 * 2 * 2 * 8 * 4  # tokens, of one layer's keys and values, two heads of eight, float32
    servers = [start_shard(kv_bytes=8 * page), start_shard(kv_bytes=4 * page)]
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
