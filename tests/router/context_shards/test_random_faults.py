"""Shards that die, hang up, come and go at random while sequences are read, generate and are cancelled."""

from __future__ import annotations

import random

import pytest

from tests.router.context_shards.live_shards import holder, sharded_engine, start_shard
from tests.router.local_engine import tokens_alone

PROMPTS = [tuple(range(3 + number, 3 + number + length)) for number, length in enumerate((5, 23, 40, 61))]


@pytest.mark.parametrize("seed", range(4))
def test_every_token_is_right_whatever_happens_to_shards(seed):
    draw = random.Random(seed)
    servers = [start_shard() for _ in range(3)]
    stopped: list = []
    with sharded_engine(servers, kv_bytes=20_000) as (local, shards):
        streams = {number: local.ask(PROMPTS[number % 4], 30, request_id=str(number)) for number in range(8)}
        for number, stream in streams.items():
            if number % 4 == 3:
                local.engine.cancel(str(number))
                continue
            while len(stream.ids) < draw.randrange(1, 25):
                stream.take()
            if draw.random() < 0.5:
                victim = servers.pop(draw.randrange(len(servers)))
                victim.stop()
                stopped.append(victim)
                servers.append(start_shard())
                shards.update(map(holder, servers))
            else:
                draw.choice(list(shards._streams.values())).reset()
        for number, stream in streams.items():
            if number % 4 != 3:
                assert stream.tokens() == tokens_alone(PROMPTS[number % 4], 30)
        local.wait_for(lambda: not any(each.shard.describe().num_segments for each in servers))
