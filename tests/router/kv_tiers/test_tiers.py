"""What leaves the cache, what comes back, and what is given up: over real books, tensors and files."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch

from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import KvStorage
from router.kv_tiers.disk import DiskTier
from router.kv_tiers.tiers import _ENDING, KvTiers
from router.paging.blocks import BlockChain, block_keys
from router.paging.paged_kv import PagedKv, PagingPlan
from tests.tiny import TINY

PAGE, WAIT_S = 4, 30
IDS, OTHERS = list(range(30)), list(range(40, 70))


class Cache:
    """A cache of 9 global pages and 6 local ones, and its tiers."""

    def __init__(self, **fields) -> None:
        self.layout = CacheLayout(replace(TINY, attention_chunk=8), "float32", PAGE)
        plan = PagingPlan(PAGE, 8, True, 9, 6)
        self.kv = PagedKv(plan)
        self.storage = KvStorage(self.layout, plan, torch.float32, torch.device("cpu"))
        self.back = threading.Event()
        sizes = {"host_bytes": 0, "disk_bytes": 0} | fields
        self.tiers = KvTiers(self.kv, self.storage, self.layout, wake=self.back.set, **sizes)

    def compute(self, ids) -> None:
        """Compute and publish all of a prompt, each value telling its token's place."""
        pages = self.kv.admit(ids, expect_tokens=len(ids))
        while pages.num_tokens < len(ids):
            start, num = pages.num_tokens, min(PAGE, len(ids) - pages.num_tokens)
            self.kv.grow(pages, num)
            self.tiers.save_evicted()
            for is_local, table in ((False, pages.global_table), (True, pages.local_table)):
                for part in self.storage.parts(is_local):
                    for position, slot in enumerate(table.slots(start, start + num), start):
                        part[slot] = ids[0] * 1000 + position
            self.kv.advance(pages, ids, num)
        self.kv.release(pages)

    def bring_back(self, ids, tokens_per_s: float = 0.0):
        return self.tiers.bring_back(ids, BlockChain(PAGE), tokens_per_s)

    def settle(self) -> None:
        assert self.back.wait(WAIT_S)
        self.back.clear()
        self.tiers.settle()

    def check(self, ids, num_tokens: int) -> None:
        """Check that so much of a prompt can be found, with the values it was computed with."""
        pages = self.kv.admit(ids, expect_tokens=0)
        assert pages.num_cached == num_tokens
        start = pages.local_table.first * PAGE
        for is_local, table, first in ((False, pages.global_table, 0), (True, pages.local_table, start)):
            for part in self.storage.parts(is_local):
                for position, slot in enumerate(table.slots(first, num_tokens), first):
                    assert (part[slot] == ids[0] * 1000 + position).all()
        self.kv.release(pages)
        self.kv.check()
        self.tiers.check()


@pytest.mark.parametrize(
    "sizes", [{"host_bytes": 10**6}, {"disk_bytes": 10**6}, {"host_bytes": 4000, "disk_bytes": 10**6}]
)
def test_what_was_evicted_comes_back_with_its_content(sizes):
    cache = Cache(**sizes)
    try:
        cache.compute(IDS)
        cache.compute(OTHERS)
        assert cache.bring_back(IDS) is not None
        cache.settle()
        cache.check(IDS, 28)
        assert cache.kv.num_used_pages() == (0, 0)
    finally:
        cache.tiers.close()


def test_what_the_cache_has_is_not_brought_back():
    cache = Cache(host_bytes=10**6)
    cache.compute(IDS)
    assert cache.bring_back(IDS) is None
    cache.tiers.close()


def test_what_takes_longer_than_computing_stays_away_until_computing_is_slower():
    cache = Cache(host_bytes=10**6)
    cache.tiers.rates["host"].observe(1, 1.0)
    cache.compute(IDS)
    cache.compute(OTHERS)
    assert cache.bring_back(IDS, tokens_per_s=1e6) is None
    assert cache.bring_back(IDS, tokens_per_s=1e-6) is not None
    cache.settle()
    cache.check(IDS, 28)
    cache.tiers.close()


def test_what_memory_has_comes_back_alone_if_the_disk_is_too_slow():
    slot_bytes = Cache().layout.pages_bytes(1, 0)
    cache = Cache(host_bytes=16 * slot_bytes, disk_bytes=10**6)
    cache.compute(IDS)
    cache.compute(OTHERS)
    cache.compute([99, *OTHERS])
    cache.tiers.rates["disk"].observe(1, 10.0)
    restore = cache.bring_back(OTHERS, tokens_per_s=1.0)
    if restore is not None:
        assert restore.from_disk == []
        cache.settle()
    assert cache.bring_back(IDS, tokens_per_s=1.0) is None
    cache.tiers.close()


class HungDisk(DiskTier):
    """A disk that answers no read before it is told to."""

    answers = threading.Event()

    def read(self, block, row):
        assert self.answers.wait(WAIT_S)
        return super().read(block, row)


def test_nobody_waits_for_a_disk_that_hangs_and_what_it_gives_at_last_is_not_used(monkeypatch):
    monkeypatch.setattr("router.kv_tiers.tiers.DiskTier", HungDisk)
    HungDisk.answers.clear()
    cache = Cache(disk_bytes=10**6)
    cache.tiers.least_wait_s = 0.0
    cache.compute(IDS)
    cache.compute(OTHERS)
    restore = cache.bring_back(IDS, tokens_per_s=1e9)
    assert restore is not None
    assert cache.kv.is_coming(IDS)
    cache.tiers.settle()
    assert restore.is_settled
    assert not cache.kv.is_coming(IDS)
    assert cache.bring_back(IDS, tokens_per_s=1e9) is None, "more pages are held for a disk that does not answer"
    cache.kv.check()
    HungDisk.answers.set()
    cache.settle()
    assert not cache.tiers.is_busy
    assert cache.kv.num_used_pages() == (0, 0)
    cache.kv.check()
    cache.tiers.close()


def test_closing_gives_up_what_is_under_way(monkeypatch):
    monkeypatch.setattr("router.kv_tiers.tiers.DiskTier", HungDisk)
    HungDisk.answers.clear()
    cache = Cache(disk_bytes=10**6)
    cache.compute(IDS)
    cache.compute(OTHERS)
    first, second = cache.bring_back(IDS), cache.bring_back([99, *OTHERS])
    assert first is not None
    assert second is None
    HungDisk.answers.set()
    cache.tiers.close()
    cache.tiers.close()
    assert first.is_settled
    assert cache.kv.num_used_pages() == (0, 0)
    cache.kv.check()


def test_what_was_used_last_is_kept_for_the_next_process_where_there_is_room_for_some(tmp_path):
    stride = Cache().tiers._bytes.slot_bytes + 64
    sizes = {"host_bytes": 10**6, "disk_bytes": 4096 + 16 * stride, "folder": tmp_path}
    cache = Cache(**sizes)
    cache.compute(IDS)
    cache.compute(OTHERS)
    cache.tiers.close()
    again = Cache(**sizes)
    found = [sum((False, key) in again.tiers._disk for key in block_keys(ids, PAGE)) for ids in (IDS, OTHERS)]
    first_is_there = (False, block_keys(OTHERS, PAGE)[0]) in again.tiers._disk
    again.tiers.close()
    assert first_is_there
    assert found[1] >= found[0]


def test_of_what_was_kept_the_ends_of_prompts_go_first(tmp_path):
    sizes = {"host_bytes": 10**6, "disk_bytes": 10**6, "folder": tmp_path}
    cache = Cache(**sizes)
    cache.compute(OTHERS)
    cache.tiers.close()
    again = Cache(**sizes)
    keys = block_keys(OTHERS, PAGE)
    order = [keys.index(key) for (is_local, key), _ in again.tiers._disk._books.blocks() if not is_local]
    again.tiers.close()
    assert order == sorted(order, reverse=True)


def test_close_returns_though_the_disk_hangs(monkeypatch, tmp_path):
    answers = threading.Event()

    class HangingDisk(DiskTier):
        def put(self, block, row):
            assert answers.wait(WAIT_S)
            super().put(block, row)

    monkeypatch.setattr("router.kv_tiers.tiers.DiskTier", HangingDisk)
    monkeypatch.setattr("router.kv_tiers.tiers._CLOSE_S", 0.2)
    cache = Cache(host_bytes=10**6, disk_bytes=10**6, folder=tmp_path)
    cache.compute(IDS)
    closing = threading.Thread(target=cache.tiers.close)
    closing.start()
    closing.join(WAIT_S / 2)
    has_returned = not closing.is_alive()
    answers.set()
    closing.join()
    for thread in threading.enumerate():
        if thread.name == _ENDING:  # left behind, until the disk answers
            thread.join()
    assert has_returned


def test_pages_for_which_there_is_no_memory_are_not_here(monkeypatch):
    cache = Cache(host_bytes=10**6)
    cache.compute(IDS)
    before = cache.tiers._host.used_bytes

    def no_memory(*_: object) -> torch.Tensor:
        raise RuntimeError("can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr("router.kv_tiers.host.torch.cat", no_memory)
        cache.compute(OTHERS)
    assert cache.tiers._host.used_bytes == before
    cache.tiers.close()
