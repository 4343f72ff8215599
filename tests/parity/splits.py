"""Runs sequences through a model in steps of given sizes."""

from __future__ import annotations

import torch

from router.batch import Batch, Span
from router.forward import Forward
from router.kv_cache import CacheLayout, SequenceCache

CPU = torch.device("cpu")


def run_in_splits(forward: Forward, ids_BS: torch.Tensor, steps: list[int]) -> torch.Tensor:
    """Return logits [B, S, V] of sequences computed side by side, so many tokens of each per step."""
    layout = CacheLayout(forward.decoder.config, forward.decoder.dtype)
    caches = [SequenceCache(layout, ids_BS.shape[1], CPU) for _ in ids_BS]
    parts, start = [], 0
    for step in steps:
        stop = start + step
        spans = [
            Span(cache, start, ids[start:stop].tolist(), wants_all_logits=True)
            for cache, ids in zip(caches, ids_BS, strict=True)
        ]
        parts.append(forward(Batch.of(spans, layout, CPU)).unflatten(0, (len(caches), step)))
        start = stop
    return torch.cat(parts, dim=1)
