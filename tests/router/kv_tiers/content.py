"""A small cache whose bytes are known, and blocks to name them by."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import KvStorage
from router.kv_tiers.page_bytes import PageBytes
from router.paging.paged_kv import PagingPlan
from router.paging.refill import Block
from tests.tiny import TINY

CHUNK, PAGE, NUM_PAGES = 8, 4, 12


def tiny_cache(kv_dtype="float32", **changes) -> tuple[CacheLayout, KvStorage, PageBytes]:
    """Return a cache of random bytes with one global and three local layers, unless changed."""
    layout = CacheLayout(replace(TINY, **{"attention_chunk": CHUNK} | changes), kv_dtype, PAGE)
    plan = PagingPlan(layout.page_tokens, layout.chunk, bool(layout.global_layers), NUM_PAGES, NUM_PAGES)
    storage = KvStorage(layout, plan, torch.float32, torch.device("cpu"))
    for part in all_parts(storage):
        part.view(torch.uint8).random_(0, 256)
    return layout, storage, PageBytes(storage, layout)


def all_parts(storage: KvStorage) -> list[Tensor]:
    return [*storage.parts(False), *storage.parts(True)]


def block(number: int, *, is_local: bool = False) -> Block:
    return is_local, number.to_bytes(16, "big")


def random_row(page_bytes: PageBytes, is_local: bool, seed: int) -> Tensor:
    """Return the content of a page [slots, bytes of a slot]."""
    draw = torch.Generator().manual_seed(seed)
    shape = page_bytes.slots_per_page[is_local], page_bytes.slot_bytes
    return torch.randint(0, 256, shape, generator=draw, dtype=torch.uint8)
