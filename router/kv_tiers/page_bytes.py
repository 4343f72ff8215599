"""A page's content as bytes: all layers of its kind, one after another, each with its keys and then its values.

A slot is what tiers store: as many layers as divide the number of global and of local ones, so that pages of either
kind are a whole number of slots and share one space without loss.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import KvStorage


class PageBytes:
    """Reads and writes pages of a cache. n is the number of pages.

    Args:
        storage: the cache's tensors.
        layout: of the cache.
    """

    def __init__(self, storage: KvStorage, layout: CacheLayout) -> None:
        num_layers = {False: len(layout.global_layers), True: len(layout.local_layers)}
        slot_layers = math.gcd(*num_layers.values())
        self._storage = storage
        self.slot_bytes = slot_layers * layout.page_tokens * layout.bytes_per_token_layer
        self.slots_per_page = {is_local: layers // slot_layers for is_local, layers in num_layers.items()}
        """Slots a global (False) and a local page take."""
        sizes = [self._part_bytes(part) for is_local in (False, True) for part in storage.parts(is_local)]
        self.word = torch.uint8 if any(size % torch.int64.itemsize for size in sizes) else torch.int64
        """What bytes are copied as: by index, torch copies element by element, and eight bytes at once 8 times faster:
        12 GB/s instead of 1.5, one core of an EPYC, 2026-11."""

    def page_bytes(self, is_local: bool) -> int:
        """Return the bytes of a page of one kind."""
        return self.slots_per_page[is_local] * self.slot_bytes

    def read(self, is_local: bool, pages: Sequence[int]) -> Tensor:
        """Return the content of pages of one kind, [n, bytes of a page] uint8, in host memory. Cost: one copy."""
        rows = torch.empty(len(pages), self.page_bytes(is_local), dtype=torch.uint8)
        for words, part in self._parts(is_local, rows):
            words[:] = part.index_select(0, torch.tensor(pages, dtype=torch.int64, device=part.device)).to(words.device)
        return rows

    def write(self, is_local: bool, pages: Sequence[int], rows: Tensor) -> None:
        """Put content back, as `read` returned it, into any pages of the same kind."""
        for words, part in self._parts(is_local, rows):
            index = torch.tensor(pages, dtype=torch.int64, device=part.device)
            part.index_copy_(0, index, words.to(part.device))

    def _parts(self, is_local: bool, rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (its part of `rows` [n, words], itself [pages, words]) of each tensor of the cache."""
        first = 0
        for part in self._storage.parts(is_local):
            num_bytes = self._part_bytes(part)
            words = rows[:, first : first + num_bytes].view(self.word)
            yield words, part.view(torch.uint8).view(-1, num_bytes).view(self.word)
            first += num_bytes

    def _part_bytes(self, part: Tensor) -> int:
        """Return the bytes of a page in one tensor of the cache [slots, ...]."""
        return self._storage.page_tokens * math.prod(part.shape[1:]) * part.itemsize
