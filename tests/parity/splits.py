"""Runs sequences through a model in steps of given sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from router.batch import Batch, Span, split
from router.forward import Forward
from router.kv_cache.codec import dtype_name
from router.kv_cache.layout import CacheLayout, KvDtype
from router.kv_cache.storage import KvStorage
from router.paging.paged_kv import PagedKv, PagingPlan


def run_in_splits(
    forward: Forward,
    ids_BS: torch.Tensor | Sequence[Sequence[int]],
    steps: list[int],
    *,
    num_batches: int = 1,
    kv_dtype: KvDtype | None = None,
    page_tokens: int = 4,
) -> torch.Tensor:
    """Return logits [B, S, V] of sequences computed side by side, so many tokens of each per step.

    Keys and values of global layers are on the forward pass's context shards, if it has any.
    """
    decoder = forward.decoder
    layout = CacheLayout(decoder.config, kv_dtype or dtype_name(decoder.dtype), page_tokens)
    rows = [[int(token) for token in ids] for ids in ids_BS]
    num_pages = len(rows) * (len(rows[0]) // layout.page_tokens + 1)
    shards = forward.shards
    has_global = bool(layout.global_layers) and shards is None
    plan = PagingPlan(layout.page_tokens, layout.chunk, has_global, num_pages if has_global else 0, num_pages)
    kv, storage = PagedKv(plan), KvStorage(layout, plan, decoder.dtype, decoder.device)
    sequences = [kv.admit(ids, expect_tokens=len(ids), use_cached=False) for ids in rows]
    segments = [shards.promise(len(ids)) if shards else None for ids in rows]
    parts, start = [], 0
    for step in steps:
        stop = start + step
        for each in filter(None, segments):
            shards.extend(each, stop)
        for pages in sequences:
            kv.grow(pages, step)
        spans = [
            Span(pages, start, ids[start:stop], num_logits=step, segments=each)
            for pages, ids, each in zip(sequences, rows, segments, strict=True)
        ]
        batches = [Batch.of(part, layout, decoder.device, forward.look(storage)) for part in split(spans, num_batches)]
        parts.append(forward(batches, storage).unflatten(0, (len(rows), step)))
        for pages, ids in zip(sequences, rows, strict=True):
            kv.advance(pages, ids, step)
        for each in filter(None, segments):
            each.num_tokens = stop
        start = stop
    for each in filter(None, segments):
        shards.release(each)
    return torch.cat(parts, dim=1)
