"""Context shards of a running Herd are killed and hang in mid-decode of long requests: no stream notices."""

from __future__ import annotations

import os
import signal
import urllib.request
from collections.abc import Iterator

import pytest

from benchmarks.chaos.application import Application
from benchmarks.chaos.processes import Part, processes_of
from tests.e2e.demo_engine import greedy_tokens
from tests.e2e.served import served
from tests.faults.streams import Streams
from tests.faults.trial import wait_until

pytestmark = pytest.mark.timeout(600)

MAX_TOKENS = 150
PROMPT_TOKENS = 700
SEGMENT_TOKENS = 128
SHARD_BYTES = 9 * SEGMENT_TOKENS * 2048
"""Of two shards, which hold two of the requests: the third waits for a third shard."""
REQUESTS = [
    {
        "token_ids": {"ids": [5 + (index * 31 + position * 7) % 200 for position in range(PROMPT_TOKENS)]},
        "sampling": {"temperature": 0.0 if index else 0.8, "seed": 7},
        "stopping": {"max_tokens": MAX_TOKENS, "ignore_eos": True},
    }
    for index in range(3)
]


@pytest.fixture(scope="module")
def herd() -> Iterator[Application]:
    shards = ("context.shards=2", "context.max_shards=3", f"context.segment_tokens={SEGMENT_TOKENS}")
    with served(*shards, f"context.kv_bytes={SHARD_BYTES}", "scaling.down_after_s=600") as herd:
        yield herd


@pytest.fixture(scope="module")
def undisturbed(herd) -> list[list[int]]:
    assert len(processes_of(herd.pid, Part.CONTEXT)) == 2
    with Streams(herd.grpc_address, REQUESTS) as streams:
        return [each.ids for each in streams.wait()]


def test_a_shard_is_added_while_sequences_want_more_tokens_than_there_is_room_for(herd, undisturbed):
    assert [len(ids) for ids in undisturbed] == [MAX_TOKENS] * 3
    assert len(processes_of(herd.pid, Part.CONTEXT)) == 3


def test_greedy_tokens_are_those_of_an_engine_without_shards(demo_dir, undisturbed):
    prompts = [request["token_ids"]["ids"] for request in REQUESTS[1:]]
    assert greedy_tokens(demo_dir, prompts, MAX_TOKENS) == undisturbed[1:]


def test_a_shard_that_is_killed_costs_no_token_and_its_segments_alone(herd, undisturbed):
    before = repaired_tokens(herd)
    victim = processes_of(herd.pid, Part.CONTEXT)[0].pid
    with Streams(herd.grpc_address, REQUESTS) as streams:
        streams.wait_for_tokens(20)
        os.kill(victim, signal.SIGKILL)
        assert [each.ids for each in streams.wait()] == undisturbed
    repaired = repaired_tokens(herd) - before
    # Of each stream, the shard had at most its share of the segments, one more where they do not divide evenly.
    segments = -(-(PROMPT_TOKENS + MAX_TOKENS) // SEGMENT_TOKENS)
    assert 0 < repaired <= len(REQUESTS) * (-(-segments // 3) + 1) * SEGMENT_TOKENS
    wait_until(lambda: len(processes_of(herd.pid, Part.CONTEXT)) == 3)


def repaired_tokens(herd: Application) -> float:
    """Return the tokens that routers computed again."""
    with urllib.request.urlopen(f"{herd.base_url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith("herd_context_repaired_tokens{"))
