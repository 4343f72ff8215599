"""The books of segments: none is missing between two others, whatever a shard loses."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from protos.errors import NoReplica, Overloaded
from router.context_shards.shards import ContextShards, ShardFailed
from router.context_shards.stream import ShardHolder
from tests.router.context_shards.live_shards import FINGERPRINT, PAGE, holder, start_shard
from tests.router.local_engine import WAIT_S


@contextmanager
def opened(
    num_shards: int, kv_bytes: int = 1_000_000, segment_tokens: int = 8, **others: float
) -> Iterator[ContextShards]:
    """Start shards and open the streams to them."""
    servers = [start_shard(kv_bytes=kv_bytes) for _ in range(num_shards)]
    try:
        opening = ContextShards(router_id="router", fingerprint=FINGERPRINT, segment_tokens=segment_tokens, **others)
        with closing(opening) as shards:
            shards.update(map(holder, servers))
            assert shards.wait_ready(num_shards, WAIT_S)
            yield shards
    finally:
        for server in servers:
            server.stop()


@pytest.mark.parametrize("num_written", [0, 3, 8, 11])
def test_segments_have_no_gap_after_a_step_over_several_of_them_failed(num_written):
    with opened(2) as shards:
        segments = shards.promise(40)
        assert segments is not None
        shards.extend(segments, 32)
        segments.num_tokens = num_written
        first = segments.segments[num_written // 8]
        shards.settle(ShardFailed(first.shard_id, Overloaded("full"), [first.segment_id]))
        shards.extend(segments, 32)
        assert [each.start for each in segments.segments] == [0, 8, 16, 24]
        assert all(each.shard_id for each in segments.segments)
        assert len({each.segment_id for each in segments.segments}) == 4


def test_without_a_shard_there_is_no_place_for_a_segment_until_one_comes():
    with opened(1) as shards:
        segments = shards.promise(8)
        assert segments is not None
        holders = [stream.holder for stream in shards._streams.values()]
        shards.update(())
        assert not shards.extend(segments, 8)
        assert shards.lacking is not None
        shards.update(holders)
        assert shards.wait_ready(1, WAIT_S)
        assert shards.extend(segments, 8)
        assert shards.lacking is None


def test_room_is_not_waited_for_without_end():
    with opened(1, patience_s=0.0) as shards:
        segments = shards.promise(8)
        assert segments is not None
        shards.update(())
        with pytest.raises(NoReplica, match="for 8 tokens more, found 0 shards with less: add"):
            shards.extend(segments, 8)


def test_sequences_that_are_alike_are_not_taken_for_each_other():
    with opened(1) as shards:
        first, second = shards.promise(50), shards.promise(50)
        assert first is not None
        assert second is not None
        free = shards.free_tokens
        shards.release(second)
        shards.release(second)
        assert shards.free_tokens == free + 50
        assert shards.extend(first, 50)
        shards.release(first)
        assert not first.segments
        assert shards.free_tokens == free + 100


def test_room_is_promised_only_where_each_segment_fits_on_one_shard():
    with opened(2, kv_bytes=3 * PAGE, segment_tokens=16) as shards:
        assert shards.free_tokens == 48
        assert shards.promise(48) is None
        assert shards.promise(40) is not None  # two whole segments, and eight tokens beside one of them
        assert shards.promise(8) is not None
        assert shards.promise(1) is None


def test_tokens_that_were_lost_are_owed_again():
    with opened(2, kv_bytes=4 * PAGE) as shards:
        segments = shards.promise(32)
        assert segments is not None
        assert shards.extend(segments, 32)
        segments.num_tokens = 32
        before = shards.free_tokens
        first = segments.segments[0]
        shards.settle(ShardFailed(first.shard_id, Overloaded("full"), [first.segment_id]))
        assert shards.free_tokens <= before - 8


def test_how_long_one_has_waited_is_nothing_to_another():
    with opened(1, patience_s=0.5) as shards:
        staying, leaving = shards.promise(24), shards.promise(8)
        assert staying is not None
        assert leaving is not None
        assert shards.extend(staying, 8)
        shards.update(())
        assert not shards.extend(leaving, 8)
        shards.release(leaving)
        assert shards.lacking is None
        assert not shards.is_at_standstill
        leaving.lacking_since = -1e9  # for ever
        assert not shards.extend(staying, 16)


def test_the_room_there_is_can_be_asked_while_shards_come_and_go():
    with opened(1) as shards:
        holders = [stream.holder for stream in shards._streams.values()]
        others = [ShardHolder(f"gone-{number}", "127.0.0.1:1") for number in range(3)]
        failures: list[RuntimeError] = []
        stopping = threading.Event()

        def ask() -> None:
            while not stopping.is_set():
                try:
                    _ = shards.free_tokens
                except RuntimeError as error:
                    failures.append(error)
                    return

        asking = threading.Thread(target=ask)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-5)
        asking.start()
        try:
            for _ in range(10):
                shards.update([*holders, *others])
                shards.update(holders)
        finally:
            stopping.set()
            asking.join()
            sys.setswitchinterval(interval)
        assert not failures
