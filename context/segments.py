"""What a shard holds: segments of routers' sequences, in pages of one pool."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import ModelConfig
from models.llama4.softmax import KeysValues
from protos.errors import BadConfig, BadDispatch, ContextLost, Overloaded
from router.kv_cache.layout import CacheLayout, KvDtype
from router.kv_cache.storage import KvStorage
from router.paging.page_pool import PagePool
from router.paging.page_table import PageTable
from router.paging.paged_kv import PagingPlan

PAGE_TOKENS = 64
"""Tokens per page, at most: a segment wastes less than one page."""

SegmentKey = tuple[str, int]
"""(router, its number of the segment)."""


@dataclass(slots=True)
class _Segment:
    table: PageTable
    filled: dict[int, int]
    """Tokens written, by layer."""


class SegmentStore:
    """Keys and values by segment and layer. For one thread at a time.

    Args:
        config: of the model whose global layers it keeps.
        kv_dtype: what keys and values are stored in.
        kv_bytes: memory for them.
        dtype: what the model computes in.
        device: where.

    Raises:
        BadConfig: the model has no global layers, or no page fits.
    """

    def __init__(
        self, config: ModelConfig, *, kv_dtype: KvDtype, kv_bytes: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.layout = CacheLayout(config, kv_dtype, PAGE_TOKENS)
        if not self.layout.global_layers:
            raise BadConfig("expected a model with global layers, found none: it needs no context shards")
        num_pages = kv_bytes // self.layout.pages_bytes(1, 0)
        if num_pages < 1:
            raise BadConfig(
                f"expected memory for at least one page of {self.layout.pages_bytes(1, 0)} bytes, found {kv_bytes}: "
                "raise context.kv_bytes"
            )
        plan = PagingPlan(
            page_tokens=self.layout.page_tokens,
            chunk=None,
            has_global=True,
            num_global_pages=num_pages,
            num_local_pages=0,
        )
        self._storage = KvStorage(self.layout, plan, dtype, device)
        self._device = device
        self._dtype = dtype
        self._pool = PagePool(num_pages)
        self._segments: dict[SegmentKey, _Segment] = {}

    @property
    def total_tokens(self) -> int:
        """Return how many tokens fit."""
        return self._pool.num_pages * self.layout.page_tokens

    @property
    def free_tokens(self) -> int:
        """Return how many more tokens fit, in whole pages."""
        return self._pool.num_available * self.layout.page_tokens

    @property
    def num_segments(self) -> int:
        """Return how many segments are held."""
        return len(self._segments)

    def owned_by(self, router_id: str) -> list[int]:
        """Return a router's segments, ascending."""
        return sorted(segment_id for owner, segment_id in self._segments if owner == router_id)

    def write(self, key: SegmentKey, layer: int, start: int, k_TGC: Tensor, v_TGC: Tensor) -> None:
        """Put tokens into a segment, over what may be there.

        Args:
            key: of the segment, made if it is not there and `start` is 0.
            layer: a global layer.
            start: offset of the first token.
            k_TGC: [T, G, C].
            v_TGC: [T, G, C].

        Raises:
            ContextLost: the segment, or tokens before `start`, are not there.
            Overloaded: no page is free.
        """
        segment = self._segments.get(key)
        if segment is None:
            if start:
                raise self._lost(key, start, 0)
            segment = _Segment(PageTable(self.layout.page_tokens), {})
        filled = segment.filled.get(layer, 0)
        if start > filled:
            raise self._lost(key, start, filled)
        stop = start + k_TGC.shape[0]
        self._grow(segment, stop)
        self._segments[key] = segment
        slots_T = torch.tensor(segment.table.slots(start, stop), dtype=torch.int64, device=self._device)
        self._storage.write(layer, slots_T, k_TGC.to(self._device), v_TGC.to(self._device))
        segment.filled[layer] = max(filled, stop)

    def fill(self, key: SegmentKey, num_tokens: int) -> None:
        """Fill a segment with `synthetic` keys and values.

        Raises:
            Overloaded: there is no room for it.
        """
        heads = self.layout.config.num_kv_heads, self.layout.config.head_size
        for layer in self.layout.global_layers:
            self.write(key, layer, 0, *synthetic(key[1], layer, (num_tokens, *heads), self._dtype))

    def read(self, key: SegmentKey, layer: int, num_tokens: int) -> list[KeysValues]:
        """Return the first tokens of a segment in one layer, as pieces of keys and values [G, S, C].

        Raises:
            ContextLost: they are not there.
        """
        segment = self._segments.get(key)
        filled = 0 if segment is None else segment.filled.get(layer, 0)
        if segment is None or num_tokens > filled:
            raise self._lost(key, num_tokens, filled)
        return [self._storage.read(layer, [piece]) for piece in segment.table.pieces(0, num_tokens)]

    def release(self, keys: Iterable[SegmentKey]) -> None:
        """Drop segments, those that are here."""
        for key in keys:
            segment = self._segments.pop(key, None)
            for page in segment.table.pages() if segment else ():
                self._pool.give_back(page)

    def check_layer(self, layer: int) -> None:
        """Check that a layer is one whose keys and values are kept here.

        Raises:
            BadDispatch: it is not.
        """
        if layer not in self.layout.global_layers:
            raise BadDispatch(
                f"layer: expected one of the {len(self.layout.global_layers)} global layers, found {layer}: local "
                "layers stay with the router"
            )

    def _grow(self, segment: _Segment, num_tokens: int) -> None:
        table = segment.table
        num_missing = -(-num_tokens // self.layout.page_tokens) - table.num_pages
        if num_missing <= 0:
            return
        if num_missing > self._pool.num_available:
            raise Overloaded(
                f"expected room for {num_missing * self.layout.page_tokens} more tokens, found {self.free_tokens}: "
                "add a context shard",
                retry_after_ms=1000,
            )
        # As much again: segments grow step by step, and pieces that lie apart are attended to apart.
        table.append(self._pool.take(num_missing, after=table.last_page, expect=table.num_pages + num_missing))

    @staticmethod
    def _lost(key: SegmentKey, wanted: int, found: int) -> ContextLost:
        return ContextLost(
            f"expected {wanted} tokens in segment {key[1]} of router {key[0]}, found {found}: compute them again",
            metadata={"segment_id": str(key[1])},
        )


def synthetic(segment_id: int, layer: int, shape: tuple[int, int, int], dtype: torch.dtype) -> KeysValues:
    """Return random keys and values [T, G, C], uniform in [-1, 1): the same for the same arguments, in any process."""
    generator = torch.Generator().manual_seed(segment_id * 1024 + layer)
    keys_TGC, values_TGC = (torch.empty(shape, dtype=dtype).uniform_(-1, 1, generator=generator) for _ in range(2))
    return keys_TGC, values_TGC
