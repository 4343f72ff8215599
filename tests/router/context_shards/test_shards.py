"""The books of segments: none is missing between two others, whatever a shard loses."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import pytest
import torch

from context.server import ContextServer
from protos.codec import write_tensor
from protos.context.v1 import context_pb2
from protos.errors import NoReplica, Overloaded
from router.context_shards.segments import SequenceSegments
from router.context_shards.shards import ContextShards, ShardFailed
from router.context_shards.stream import ShardHolder
from tests.router.context_shards.live_shards import FINGERPRINT, PAGE, holder, start_shard
from tests.router.local_engine import WAIT_S
from tests.tiny import TINY


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


def written(shards: ContextShards, segments: SequenceSegments) -> None:
    """Write four tokens to the first segment of a sequence."""
    shard_id = segments.segments[0].shard_id
    step = step_of(shards, segments)
    shards.await_answer(shard_id, step, shards.send(shard_id, step))
    segments.num_tokens = 4


def step_of(shards: ContextShards, segments: SequenceSegments) -> context_pb2.Step:
    layer = next(layer for layer in range(TINY.num_layers) if not TINY.is_local(layer))
    step = context_pb2.Step(step_id=shards.next_step(), layer=layer)
    append = step.appends.add(segment_id=segments.segments[0].segment_id, start=0)
    for tensor in (append.keys, append.values):
        write_tensor(tensor, torch.zeros(4, TINY.num_kv_heads, TINY.head_size))
    return step


@contextmanager
def with_written_segment() -> Iterator[tuple[ContextServer, ContextShards, SequenceSegments]]:
    """Start a shard that holds four tokens of a sequence."""
    server = start_shard()
    try:
        with closing(ContextShards(router_id="router", fingerprint=FINGERPRINT, segment_tokens=8)) as shards:
            shards.update([holder(server)])
            assert shards.wait_ready(1, WAIT_S)
            segments = shards.promise(8)
            assert segments is not None
            assert shards.extend(segments, 4)
            written(shards, segments)
            yield server, shards, segments
    finally:
        server.stop()


def wait_until(holds: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.002)


def test_what_is_released_while_a_stream_is_down_is_dropped_when_it_is_back():
    with with_written_segment() as (server, shards, segments):
        (stream,) = shards._streams.values()
        stream.reset()
        wait_until(lambda: not stream.is_ready or stream.num_sessions == 2)
        shards.release(segments)
        wait_until(lambda: not server.shard.describe().num_segments)


def test_a_late_answer_loses_nothing_that_is_there(monkeypatch):
    with with_written_segment() as (server, shards, segments):
        monkeypatch.setattr("router.context_shards.shards._ANSWER_S", 0.1)
        monkeypatch.setattr("router.context_shards.shards._RECONNECT_S", WAIT_S)
        shard_id = server.shard.shard_id
        step = step_of(shards, segments)
        with server.shard._lock:
            answer = shards.send(shard_id, step)
            with pytest.raises(ShardFailed) as failed:
                shards.await_answer(shard_id, step, answer)
        shards.settle(failed.value)
        assert server.shard.describe().num_segments == 1
        assert shards.num_lost_tokens == 0
