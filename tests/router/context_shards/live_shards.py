"""Context shards in this process, and engines that keep global layers' keys and values on them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from context.segments import SegmentStore
from context.server import ContextServer
from context.shard import Shard
from protos.traced import TellAnswer
from router.context_shards.shards import ContextShards
from router.context_shards.stream import ShardHolder
from router.engine import Engine
from router.limits import EngineLimits
from tests.router.local_engine import WAIT_S, LocalEngine, WatchedTransport, tiny_model
from tests.tiny import TINY

FINGERPRINT = "tiny"
PAGE = 8 * 2 * 2 * 8 * 4
"""Bytes of eight tokens in a shard: keys and values, two heads of eight, float32, of the one global layer."""


def start_shard(
    kv_bytes: int = 1_000_000,
    lease_s: float = 30.0,
    shard_id: str | None = None,
    trace: TellAnswer | None = None,
) -> ContextServer:
    """Serve a shard of the tiny model."""
    store = SegmentStore(TINY, kv_dtype="float32", kv_bytes=kv_bytes, dtype=torch.float32, device=torch.device("cpu"))
    shard = Shard(store, fingerprint=FINGERPRINT, dtype=torch.float32, lease_s=lease_s, shard_id=shard_id)
    server = ContextServer(shard, trace=trace)
    server.start()
    return server


def holder(server: ContextServer) -> ShardHolder:
    return ShardHolder(server.shard.shard_id, server.address)


@contextmanager
def sharded_engine(
    servers: list[ContextServer], segment_tokens: int = 8, standstill_s: float = 30.0, **limits
) -> Iterator[tuple[LocalEngine, ContextShards]]:
    """Run an engine over shards until the block ends; then nothing may be left on them or in the cache."""
    decoder, weights = tiny_model()
    shards = ContextShards(
        router_id="router", fingerprint=FINGERPRINT, segment_tokens=segment_tokens, standstill_s=standstill_s
    )
    shards.update(map(holder, servers))
    assert shards.wait_ready(len(servers), WAIT_S)
    transport = WatchedTransport(weights)
    fields = {"context_length": 128, "kv_bytes": 10_000_000, "slots": 4, "step_tokens": 16, "on_shards": True} | limits
    local = LocalEngine(Engine(decoder, transport, EngineLimits(**fields), shards), transport)
    local.engine.start()
    try:
        yield local, shards
    finally:
        transport.gate.set()
        local.engine.stop()
        shards.close()
        for server in servers:
            server.stop()
    local.engine._kv.check()
    assert local.is_empty()
