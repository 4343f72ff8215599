"""The arithmetic of a model's cache: which layers keep what, and the bytes of it. Pure integers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from models.config import ModelConfig
from protos.errors import BadConfig
from router.paging.chunks import chunk_start
from router.paging.paged_kv import PagingPlan

FloatDtype = Literal["float32", "bfloat16", "float16"]
"""What a model computes in."""
KvDtype = Literal[FloatDtype, "int8", "fp8"]
"""What keys and values are stored in: fp8 is e4m3 without a scale, int8 has a float32 scale per token and head."""

ELEMENT_BYTES: dict[KvDtype, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1, "fp8": 1}
"""Bytes of one value."""
_SCALE_BYTES: dict[KvDtype, int] = {"int8": 4}


@dataclass(frozen=True)
class CacheLayout:
    """What one token, one page and one sequence of a model take.

    Args:
        config: of the model.
        kv_dtype: what keys and values are stored in.
        most_page_tokens: tokens per page, at most.
    """

    config: ModelConfig
    kv_dtype: KvDtype
    most_page_tokens: int = 16

    @cached_property
    def page_tokens(self) -> int:
        """Return the tokens of a page: chunks hold whole pages, so that a page dies at once."""
        return math.gcd(self.most_page_tokens, self.config.attention_chunk or self.most_page_tokens)

    @cached_property
    def local_layers(self) -> tuple[int, ...]:
        """Return the layers that keep the current chunk only."""
        return tuple(layer for layer in range(self.config.num_layers) if self.config.is_local(layer))

    @cached_property
    def global_layers(self) -> tuple[int, ...]:
        """Return the layers that keep every token."""
        return tuple(layer for layer in range(self.config.num_layers) if not self.config.is_local(layer))

    @cached_property
    def chunk(self) -> int | None:
        """Return the tokens after which local layers forget; None if no layer does."""
        return self.config.attention_chunk if self.local_layers else None

    @cached_property
    def bytes_per_token_layer(self) -> int:
        """Return the bytes of one token's keys and values in one layer, scales included."""
        head_bytes = self.config.head_size * ELEMENT_BYTES[self.kv_dtype] + _SCALE_BYTES.get(self.kv_dtype, 0)
        return 2 * self.config.num_kv_heads * head_bytes

    @cached_property
    def global_token_bytes(self) -> int:
        """Return the bytes of one token in all global layers."""
        return len(self.global_layers) * self.bytes_per_token_layer

    @cached_property
    def local_token_bytes(self) -> int:
        """Return the bytes of one token in all local layers."""
        return len(self.local_layers) * self.bytes_per_token_layer

    def num_pages(self, num_tokens: int) -> tuple[int, int]:
        """Return the (global, local) pages a sequence holds at most while it grows to `num_tokens`."""
        pages = -(-num_tokens // self.page_tokens)
        return (pages if self.global_layers else 0, min(pages, self.chunk // self.page_tokens) if self.chunk else 0)

    def sequence_bytes(self, num_tokens: int) -> int:
        """Return the bytes of those pages."""
        return self.pages_bytes(*self.num_pages(num_tokens))

    def pages_bytes(self, num_global: int, num_local: int) -> int:
        """Return the bytes of so many pages of each kind."""
        return self.page_tokens * (num_global * self.global_token_bytes + num_local * self.local_token_bytes)

    def plan_bytes(self, plan: PagingPlan) -> int:
        """Return the bytes of all pages of a plan."""
        return self.pages_bytes(plan.num_global_pages, plan.num_local_pages)

    def plan(self, kv_bytes: int, slots: int, context_length: int | None = None) -> PagingPlan:
        """Share memory out between the two pools.

        Sequences within one chunk need as many pages of each kind; beyond it local layers need no more. So the pools
        are of equal length, until the local one holds a chunk for every slot: global layers get all the rest. Before
        that, they get what one sequence of `context_length` needs.

        Args:
            kv_bytes: memory there is.
            slots: most sequences at once.
            context_length: most tokens of one sequence; None: whatever comes of it.

        Raises:
            BadConfig: not even a page of each kind fits.
        """
        global_bytes, local_bytes = self.pages_bytes(1, 0), self.pages_bytes(0, 1)
        num_equal = kv_bytes // (global_bytes + local_bytes)
        if num_equal < 1:
            raise BadConfig(
                f"expected a cache of at least {global_bytes + local_bytes} bytes, one page of {self.page_tokens} "
                f"tokens, found {kv_bytes}: raise router.kv_bytes"
            )
        num_local = min(num_equal, slots * (self.chunk // self.page_tokens)) if self.chunk else 0
        if context_length is not None and self.chunk:
            least_global, least_local = self.num_pages(context_length)
            num_left = (kv_bytes - least_global * global_bytes) // local_bytes
            num_local = max(min(num_local, num_left), min(least_local, num_local))
        num_global = (kv_bytes - num_local * local_bytes) // global_bytes if global_bytes else 0
        return PagingPlan(
            page_tokens=self.page_tokens,
            chunk=self.chunk,
            has_global=bool(self.global_layers),
            num_global_pages=num_global,
            num_local_pages=num_local,
        )

    def plan_local(self, kv_bytes: int) -> PagingPlan:
        """Give all memory to local layers: global ones are on context shards.

        Raises:
            BadConfig: the model has no local layers, or not a whole chunk of them fits.
        """
        if self.chunk is None:
            raise BadConfig(
                "expected a model with chunk-local layers beside context shards, found none: use routers alone"
            )
        num_pages, least = kv_bytes // self.pages_bytes(0, 1), self.chunk // self.page_tokens
        if num_pages < least:
            raise BadConfig(
                f"expected a cache of at least {self.pages_bytes(0, least)} bytes, one chunk of {self.chunk} tokens, "
                f"found {kv_bytes}: raise router.kv_bytes"
            )
        return PagingPlan(
            page_tokens=self.page_tokens,
            chunk=self.chunk,
            has_global=False,
            num_global_pages=0,
            num_local_pages=num_pages,
        )

    def longest_sequence(self, plan: PagingPlan) -> int:
        """Return the most tokens one sequence can have that has the whole cache to itself."""
        limits = [plan.num_global_pages] if plan.has_global else []
        if self.chunk and plan.num_local_pages < self.chunk // self.page_tokens:
            limits.append(plan.num_local_pages)
        return min([self.config.max_positions, *(pages * self.page_tokens for pages in limits)])

    def segments(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Cut positions [start, stop) at chunk boundaries: inside a piece, attention is causal and nothing else."""
        while start < stop:
            end = stop if self.chunk is None else min(stop, chunk_start(start, self.chunk) + self.chunk)
            yield start, end
            start = end
