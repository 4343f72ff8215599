"""The books of segments: none is missing between two others, whatever a shard loses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from protos.errors import NoReplica, Overloaded
from router.context_shards.shards import ContextShards, ShardFailed
from tests.router.context_shards.live_shards import FINGERPRINT, holder, start_shard
from tests.router.local_engine import WAIT_S


@contextmanager
def opened(num_shards: int, **others: float) -> Iterator[ContextShards]:
    """Start shards and open the streams to them."""
    servers = [start_shard() for _ in range(num_shards)]
    try:
        opening = ContextShards(router_id="router", fingerprint=FINGERPRINT, segment_tokens=8, **others)
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
