"""What is saved of a sequence comes back to whatever pages it gets, and takes the memory that was counted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import KvStorage
from router.kv_cache.swap import SwapSpace
from router.paging.paged_kv import PagedKv, PagingPlan
from tests.tiny import TINY

CPU = torch.device("cpu")
CHUNK, PAGE = 8, 4
KV_DTYPES = ["float32", "bfloat16", "int8", "fp8"]


class Cache:
    """A cache whose rows are known: layer, position and sequence tell them."""

    def __init__(self, kv_dtype="float32", limit_bytes=10**9, chunk: int | None = CHUNK, **changes) -> None:
        self.layout = CacheLayout(replace(TINY, attention_chunk=chunk, **changes), kv_dtype, PAGE)
        plan = PagingPlan(PAGE, self.layout.chunk, bool(self.layout.global_layers), 32, 32)
        self.kv = PagedKv(plan)
        self.storage = KvStorage(self.layout, plan, torch.float32, CPU)
        self.swap = SwapSpace(self.storage, self.layout, limit_bytes)

    def compute(self, ids, pages, num_tokens: int) -> None:
        """Write what a forward pass would."""
        self.kv.grow(pages, num_tokens)
        start = pages.num_tokens
        for layer in range(TINY.num_layers):
            table = self.table(layer, pages)
            slots = torch.tensor(table.slots(start, start + num_tokens))
            keys_TGC = rows(ids, start, start + num_tokens, layer)
            self.storage.write(layer, slots, keys_TGC, -keys_TGC)
        self.kv.advance(pages, ids, num_tokens)

    def table(self, layer: int, pages):
        return pages.local_table if self.layout.config.is_local(layer) else pages.global_table

    def read(self, pages, stop: int) -> list[torch.Tensor]:
        """Return keys and values of every layer: of all positions before `stop`, or those of the last chunk."""
        found = []
        for layer in range(TINY.num_layers):
            first = stop // CHUNK * CHUNK if self.layout.config.is_local(layer) else 0
            if pieces := self.table(layer, pages).pieces(first, stop):
                found += self.storage.read(layer, pieces)
        return [part.clone() for part in found]

    def admit(self, ids, use_cached=True):
        return self.kv.admit(ids, expect_tokens=len(ids), use_cached=use_cached)

    def scatter(self) -> None:
        """Take every other free page, so that what follows lies in pieces."""
        for pool in (self.kv.global_pool, self.kv.local_pool):
            pages = pool.take(pool.num_available)
            for page in pages[::2]:
                pool.give_back(page)


def rows(ids, start: int, stop: int, layer: int) -> torch.Tensor:
    """Return [T, G, C] numbers that no other position, layer or sequence has."""
    per_token = [
        torch.randn(TINY.num_kv_heads, TINY.head_size, generator=seed(ids[: p + 1], layer)) for p in range(stop)
    ]
    return torch.stack(per_token[start:])


def seed(ids, layer: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash((tuple(ids), layer)) % 2**31)


def assert_equal(found, expected) -> None:
    assert len(found) == len(expected)
    for part, other in zip(found, expected, strict=True):
        assert torch.equal(part, other)


@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
@pytest.mark.parametrize("num_tokens", [1, 4, 7, 8, 9, 16, 23])
def test_what_was_saved_comes_back_to_other_pages_bit_by_bit(num_tokens, kv_dtype):
    cache = Cache(kv_dtype)
    ids = list(range(30))
    pages = cache.admit(ids, use_cached=False)
    cache.compute(ids, pages, num_tokens)
    expected = cache.read(pages, num_tokens)
    saved = cache.swap.save(pages)
    cache.kv.release(pages)
    for part in (*cache.storage.parts(False), *cache.storage.parts(True)):
        part.zero_()
    cache.kv.clear_cache()
    cache.scatter()
    again = cache.admit(ids, use_cached=False)
    cache.kv.restore(again, ids, num_tokens)
    cache.swap.restore(saved, again, 0)
    assert_equal(cache.read(again, num_tokens), expected)
    assert cache.swap.used_bytes == 0


@pytest.mark.parametrize("num_tokens", [13, 15, 16, 22])
@pytest.mark.parametrize("num_kept", [0, 4, 8, 12])
def test_only_what_the_prefix_cache_lost_is_written_again(num_tokens, num_kept):
    cache = Cache()
    ids = list(range(30))
    pages = cache.admit(ids)
    cache.compute(ids, pages, num_tokens)
    expected = cache.read(pages, num_tokens)
    saved = cache.swap.save(pages)
    cache.kv.release(pages)
    cache.kv.clear_cache()
    other = cache.admit(ids[: num_kept + 1])
    if num_kept:
        cache.compute(ids, other, num_kept)
    kept = cache.read(other, num_kept)
    again = cache.admit(ids)
    assert again.num_cached == num_kept
    cache.kv.restore(again, ids, num_tokens)
    cache.swap.restore(saved, again, again.num_cached)
    assert_equal(cache.read(again, num_tokens), expected)
    cache.kv.check()
    assert_equal(cache.read(other, num_kept), kept)


@pytest.mark.parametrize("changes", [{}, {"chunk": None}, {"nope_layers": ()}], ids=["both", "global", "local"])
@pytest.mark.parametrize("kv_dtype", KV_DTYPES)
def test_memory_is_counted_to_the_byte(kv_dtype, changes):
    cache = Cache(kv_dtype, **changes)
    ids = list(range(30))
    pages = cache.admit(ids, use_cached=False)
    cache.compute(ids, pages, 13)
    saved = cache.swap.save(pages)
    num_local = 13 - 8
    expected = 13 * cache.layout.global_token_bytes + num_local * cache.layout.local_token_bytes
    assert cache.swap.used_bytes == saved.num_bytes == expected
    cache.swap.drop(saved)
    assert cache.swap.used_bytes == 0


def test_nothing_is_saved_beyond_the_limit():
    cache = Cache(limit_bytes=Cache().layout.global_token_bytes * 5 + Cache().layout.local_token_bytes * 5)
    first, second = (cache.admit(list(range(low, low + 9))) for low in (0, 50))
    cache.compute(list(range(9)), first, 3)
    cache.compute(list(range(50, 59)), second, 3)
    assert cache.swap.is_worth(first, 0)
    saved = cache.swap.save(first)
    assert not cache.swap.is_worth(second, 0)
    cache.swap.drop(saved)
    assert cache.swap.is_worth(second, 0)


def test_without_memory_or_without_content_nothing_is_saved():
    cache, none = Cache(), Cache(limit_bytes=0)
    assert not cache.swap.is_worth(cache.admit([1, 2, 3]), 0)
    pages = none.admit([1, 2, 3])
    none.compute([1, 2, 3], pages, 2)
    assert not none.swap.is_worth(pages, 0)


def test_what_is_computed_faster_than_copied_is_not_saved():
    cache = Cache()
    pages = cache.admit([1, 2, 3])
    cache.compute([1, 2, 3], pages, 2)
    assert cache.swap.is_worth(pages, tokens_per_s=1.0)
    assert not cache.swap.is_worth(pages, tokens_per_s=1e12)


def test_what_was_saved_does_not_change_when_its_pages_are_written():
    cache = Cache()
    ids = list(range(9))
    pages = cache.admit(ids)
    cache.compute(ids, pages, 6)
    saved = cache.swap.save(pages)
    before = [part.clone() for part in (*saved.global_parts, *saved.local_parts)]
    for part in (*cache.storage.parts(False), *cache.storage.parts(True)):
        part.zero_()
    assert_equal([*saved.global_parts, *saved.local_parts], before)
