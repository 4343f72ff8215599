"""What leaves the cache and comes back: the step loop decides, a thread of its own moves it.

    step loop                                         mover thread
    a page is evicted -> host memory, at once
      what makes room there -> a bounded queue ------> disk
    a prompt begins with pages that are away
      pages are held for them ----------------------> host memory or disk -> the held pages
    they are published, and the prompt is admitted <--- done

No step waits for a disk. A prompt that waits for pages lets others pass, and does not wait for longer than computing
them takes, or a few seconds.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import KvStorage
from router.kv_tiers.books import Slots
from router.kv_tiers.counts import TierCounts
from router.kv_tiers.disk import DiskTier
from router.kv_tiers.host import HostTier
from router.kv_tiers.page_bytes import PageBytes
from router.kv_tiers.rate import Rate
from router.paging.blocks import BlockChain
from router.paging.page_pool import OutOfPages
from router.paging.paged_kv import PagedKv
from router.paging.refill import Block, Gap, Refill

_Item = TypeVar("_Item")
_LOG = logging.getLogger(__name__)
_BATCH_BYTES = 2**23
"""Bytes moved at once: what is copied twice stays small."""
_MOST_QUEUED_BYTES = 2**28
"""Bytes that wait to be written to disk; what is beyond is lost, oldest first: those are the ends of prefixes."""
_LEAST_WAIT_S = 2.0
"""Wait for pages at least so long, though computing them takes less: it does not by so much that it matters."""
_ENDING = "end of the disk for pages"
_CLOSE_S = 5.0
"""Longest wait for the mover when the engine stops; a disk that hangs is left behind."""


@dataclass(eq=False, slots=True)
class Restore:
    """Pages on their way back."""

    refill: Refill
    from_host: list[tuple[Block, Slots]]
    from_disk: list[Block]
    give_up_at: float
    """Monotonic second from which on computing would have been quicker."""
    lost: set[Block]
    """Blocks that have not come back, or not as they left."""
    is_done: bool = False
    """Whether the mover has finished with it."""
    is_settled: bool = False
    """Whether nobody waits for it any longer: what came back is in the cache, or it took too long."""


@dataclass(slots=True)
class _Moves:
    """What the mover is to do."""

    restores: deque[Restore] = field(default_factory=deque)
    leaving: OrderedDict[Block, Tensor] = field(default_factory=OrderedDict)
    leaving_bytes: int = 0


class KvTiers:
    """Host memory and disk behind one engine's cache.

    Everything but the mover's own methods is for the step loop's thread alone.

    Args:
        kv: the cache's books; what they evict is taken note of.
        storage: its tensors.
        layout: of both.
        host_bytes: memory for pages; 0: none.
        disk_bytes: size of a file for pages; 0: none.
        folder: see DiskTier.
        model: names the weights and how they are computed; pages of others are never used.
        wake: called from the mover when pages have come back.
    """

    def __init__(
        self,
        kv: PagedKv,
        storage: KvStorage,
        layout: CacheLayout,
        *,
        host_bytes: int,
        disk_bytes: int,
        folder: Path | None = None,
        model: str = "",
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self.least_wait_s = _LEAST_WAIT_S
        self.rates = {"host": Rate(), "disk": Rate()}
        """How fast pages come back from where, as measured."""
        self._kv = kv
        self._layout = layout
        self._bytes = PageBytes(storage, layout)
        self._host = HostTier(self._bytes, host_bytes, self._leave)
        self._disk = self._open_disk(disk_bytes, folder, f"{model} {layout!r}") if disk_bytes else None
        self._is_kept = folder is not None
        self._wake = wake
        self._evicted: list[tuple[Block, int]] = []
        self._under_way: list[Restore] = []
        self._counts = TierCounts()
        self._moves = _Moves()  # shared with the mover, as the rest from here on, under the condition's lock
        self._changed = threading.Condition()
        self._stopping = False
        self._is_moving = False
        self._mover = threading.Thread(target=self._run, name="kv-tiers", daemon=True)
        self._is_on = host_bytes > 0 or self._disk is not None
        if self._is_on:
            kv.on_evict = lambda block, page: self._evicted.append((block, page))
            self._mover.start()

    @property
    def is_busy(self) -> bool:
        """Tell whether pages are on their way back."""
        return bool(self._under_way)

    def counts(self) -> TierCounts:
        """Return what the tiers hold and did."""
        counts, disk = replace(self._counts, host_bytes=self._host.used_bytes), self._disk
        if disk is None:
            return counts
        return replace(counts, disk_bytes=disk.used_bytes, num_damaged=disk.num_damaged)

    def save_evicted(self) -> None:
        """Copy what was evicted out of the cache: to be called before anything is written to it. Cost: one copy."""
        evicted, self._evicted = self._evicted, []
        for is_local, batch in self._batches(evicted, lambda item: item[0]):
            try:
                rows = self._bytes.read(is_local, [page for _, page in batch])
                self._host.put([block for block, _ in batch], rows)
            except RuntimeError:  # torch's name for no memory; computing again always works
                _LOG.warning("no memory to save %d pages: they are computed again if they are wanted", len(batch))

    def bring_back(self, ids: Sequence[int], keys: BlockChain, tokens_per_s: float) -> Restore | None:
        """Begin to restore what a prompt begins with and is away; None if nothing is, or computing it is quicker.

        Args:
            ids: of the prompt.
            keys: of its pages.
            tokens_per_s: how fast prompts are computed; 0: not known, then everything is restored.
        """
        if not self._is_on or any(restore.is_settled for restore in self._under_way):
            return None  # what was given up still holds its pages: more of that would leave none to compute with
        self.save_evicted()
        gap = self._choose_gap(ids, keys, tokens_per_s)
        if not gap.missing:
            return None
        try:
            refill = self._kv.refill(gap)
        except OutOfPages:
            return None
        from_host = [(block, self._host.lend(block)) for block in gap.missing if block in self._host]
        self.save_evicted()  # what made room, before its pages are written
        lent = {block for block, _ in from_host}
        compute_s = gap.num_blocks * self._layout.page_tokens / tokens_per_s if tokens_per_s else 0.0
        restore = Restore(
            refill,
            from_host,
            [block for block in gap.missing if block not in lent],
            time.monotonic() + max(compute_s, self.least_wait_s),
            set(gap.missing),
        )
        self._under_way.append(restore)
        with self._changed:
            self._moves.restores.append(restore)
            self._changed.notify()
        return restore

    def settle(self) -> None:
        """Publish what has come back, and let nobody wait for what takes too long."""
        now = time.monotonic()
        for restore in list(self._under_way):
            if restore.is_done:
                self._finish(restore)
            elif now >= restore.give_up_at:
                self._kv.give_up_refill(restore.refill)
                restore.is_settled = True

    def close(self) -> None:
        """Stop moving and give up what is under way. Idempotent.

        Blocks for at most a few seconds: a kept file also gets what is in memory, as far as there is time.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._mover.is_alive():
            self._mover.join(_CLOSE_S)
        if self._mover.is_alive():
            _LOG.warning("the disk for pages has not answered for %.0f s: left behind", _CLOSE_S)
            return
        for restore in list(self._under_way):
            self._finish(restore)
        if self._disk is not None:
            # In a thread that may be left behind: one write may take for ever.
            ending = threading.Thread(target=self._end_disk, args=(self._disk,), name=_ENDING, daemon=True)
            ending.start()
            ending.join(2 * _CLOSE_S)
            if ending.is_alive():
                _LOG.warning("the disk for pages has not answered for %.0f s: left behind", 2 * _CLOSE_S)
            self._disk = None

    def check(self) -> None:
        """Verify the books of both tiers.

        Raises:
            AssertionError: says what is wrong. This is our bug.
        """
        self._host.check()
        if (disk := self._disk) is not None:
            disk.check()

    def _choose_gap(self, ids: Sequence[int], keys: BlockChain, tokens_per_s: float) -> Gap:
        """Return the gap that restoring closes sooner than computing, by most: all of it, or what memory has of it."""
        best, best_s = Gap((), 0, ()), 0.0
        has_disk = self._disk is not None
        for has in (self._has, self._host.__contains__) if has_disk else (self._host.__contains__,):
            gap = self._kv.gap(ids, keys, has)
            num_bytes = self._tier_bytes(gap)
            copy_s = sum(self.rates[tier].seconds(count) for tier, count in num_bytes.items())
            compute_s = gap.num_blocks * self._layout.page_tokens / tokens_per_s if tokens_per_s else float("inf")
            if gap.missing and compute_s - copy_s > best_s:
                best, best_s = gap, compute_s - copy_s
            elif gap.missing and compute_s <= copy_s:
                for tier in num_bytes:
                    self.rates[tier].refuse()
            if not num_bytes.get("disk"):
                break
        return best

    def _tier_bytes(self, gap: Gap) -> dict[str, int]:
        found: dict[str, int] = {}
        for block in gap.missing:
            tier = "host" if block in self._host else "disk"
            found[tier] = found.get(tier, 0) + self._bytes.page_bytes(block[0])
        return found

    def _has(self, block: Block) -> bool:
        disk = self._disk
        return block in self._host or block in self._moves.leaving or (disk is not None and block in disk)

    def _leave(self, block: Block, copy: Callable[[], Tensor]) -> None:
        """Queue a page that host memory has no room for, unless the disk has it."""
        disk = self._disk
        if disk is None or disk.touch(block):
            return
        moves, row = self._moves, copy()
        with self._changed:
            moves.leaving_bytes += row.nbytes
            if (before := moves.leaving.pop(block, None)) is not None:
                moves.leaving_bytes -= before.nbytes
            moves.leaving[block] = row
            while moves.leaving_bytes > _MOST_QUEUED_BYTES:
                _, dropped = moves.leaving.popitem(last=False)
                moves.leaving_bytes -= dropped.nbytes
            self._changed.notify()

    def _finish(self, restore: Restore) -> None:
        self._under_way.remove(restore)
        for _, slots in restore.from_host:
            self._host.give_back(slots)
        self._kv.finish_refill(restore.refill, restore.lost)
        restore.is_settled = True

    def _batches(
        self, items: Sequence[_Item], block_of: Callable[[_Item], Block]
    ) -> Iterator[tuple[bool, list[_Item]]]:
        """Yield (is local, items) in their order, of one kind each and no more than fits a batch."""
        batch: list[_Item] = []
        for item in items:
            is_local = block_of(item)[0]
            if batch and (
                block_of(batch[0])[0] != is_local or (len(batch) + 1) * self._bytes.page_bytes(is_local) > _BATCH_BYTES
            ):
                yield block_of(batch[0])[0], batch
                batch = []
            batch.append(item)
        if batch:
            yield block_of(batch[0])[0], batch

    def _end_disk(self, disk: DiskTier) -> None:
        try:
            if self._is_kept:
                self._keep()
        finally:
            disk.close()

    def _keep(self) -> None:
        """Write what is in the cache and in host memory to disk, most recently used first: a prefix, not its end."""
        until = time.monotonic() + _CLOSE_S
        self.save_evicted()
        for is_local, batch in self._batches(self._kv.kept_blocks()[::-1], lambda item: item[0]):
            rows = self._bytes.read(is_local, [page for _, page in batch]).unflatten(1, (-1, self._bytes.slot_bytes))
            if not self._put_all(zip((block for block, _ in batch), rows, strict=True), until):
                return
        self._put_all(chain(list(self._moves.leaving.items())[::-1], self._host.contents()), until)

    def _put_all(self, contents: Iterable[tuple[Block, Tensor]], until: float) -> bool:
        for block, row in contents:
            disk = self._disk
            if disk is None or time.monotonic() > until:
                return False
            try:
                if not disk.keep(block, row):
                    return False
            except Exception as error:  # noqa: BLE001 as in `_put`: a disk that fails is switched off, whatever it is
                self._switch_disk_off(error)
        return True

    # The mover's.

    def _run(self) -> None:
        while (move := self._next_move()) is not None:
            if isinstance(move, Restore):
                try:
                    self._restore(move)
                except Exception:  # noqa: BLE001 what is lost is computed again: a bug here must end no request
                    _LOG.exception("restoring pages failed: their tokens are computed again")
                move.is_done = True
                self._wake()
            else:
                self._put(*move)

    def _put(self, block: Block, row: Tensor) -> None:
        if self._disk is not None:
            try:
                self._disk.put(block, row)
            except Exception as error:  # noqa: BLE001 whatever it is, the mover must live and requests go on
                self._switch_disk_off(error)

    def _next_move(self) -> Restore | tuple[Block, Tensor] | None:
        """Return what to do next, prompts that wait first; None: stop."""
        moves = self._moves
        with self._changed:
            self._is_moving = False
            self._changed.wait_for(lambda: self._stopping or moves.restores or moves.leaving)
            self._is_moving = True
            if self._stopping:
                return None
            if moves.restores:
                return moves.restores.popleft()
            block, row = moves.leaving.popitem(last=False)
            moves.leaving_bytes -= row.nbytes
            return block, row

    def _restore(self, restore: Restore) -> None:
        started_s, num_bytes = time.perf_counter(), 0
        for is_local, batch in self._batches(restore.from_host, lambda item: item[0]):
            rows = self._host.read(is_local, [slots for _, slots in batch])
            self._bytes.write(is_local, [restore.refill.pages[block] for block, _ in batch], rows)
            restore.lost.difference_update(block for block, _ in batch)
            num_bytes += rows.nbytes
        self._count("host", num_bytes, time.perf_counter() - started_s)
        started_s, num_bytes = time.perf_counter(), 0
        disk = self._disk
        in_order = restore.from_disk if disk is None else sorted(restore.from_disk, key=disk.place)
        for is_local, blocks in self._batches(in_order, lambda block: block):
            if self._stopping or not restore.refill.is_current:
                return
            num_bytes += self._restore_from_disk(restore, is_local, blocks)
        self._count("disk", num_bytes, time.perf_counter() - started_s)

    def _restore_from_disk(self, restore: Restore, is_local: bool, blocks: list[Block]) -> int:
        """Read a batch, and return the bytes that were what had been written."""
        rows = torch.empty(len(blocks), self._bytes.slots_per_page[is_local], self._bytes.slot_bytes, dtype=torch.uint8)
        good = [index for index, block in enumerate(blocks) if self._read(block, rows[index])]
        if good:
            pages = [restore.refill.pages[blocks[index]] for index in good]
            self._bytes.write(is_local, pages, (rows if len(good) == len(blocks) else rows[good]).flatten(1))
            restore.lost.difference_update(blocks[index] for index in good)
        return len(good) * self._bytes.page_bytes(is_local)

    def _read(self, block: Block, row: Tensor) -> bool:
        with self._changed:
            waiting = self._moves.leaving.get(block)
        if waiting is not None:
            row.copy_(waiting)
            return True
        disk = self._disk
        try:
            return disk is not None and disk.read(block, row)
        except OSError as error:
            self._switch_disk_off(error)
            return False

    def _count(self, tier: str, num_bytes: int, seconds: float) -> None:
        if not num_bytes:
            return
        self.rates[tier].observe(num_bytes, seconds)
        counts = self._counts
        if tier == "host":
            self._counts = replace(
                counts,
                restored_host_bytes=counts.restored_host_bytes + num_bytes,
                restore_host_s=counts.restore_host_s + seconds,
            )
        else:
            self._counts = replace(
                counts,
                restored_disk_bytes=counts.restored_disk_bytes + num_bytes,
                restore_disk_s=counts.restore_disk_s + seconds,
            )

    def _open_disk(self, disk_bytes: int, folder: Path | None, model: str) -> DiskTier | None:
        try:
            return DiskTier(self._bytes, disk_bytes, hashlib.sha256(model.encode()).digest(), folder)
        except OSError as error:
            _LOG.warning("no pages go to disk, for its file cannot be used: %s", error)
            return None

    def _switch_disk_off(self, error: Exception) -> None:
        """Go on without a disk that is full or broken."""
        disk = self._disk
        if disk is None:
            return
        _LOG.warning("no more pages go to disk or come from there: %s", error)
        self._disk = None
        self._counts = replace(self._counts, num_damaged=disk.num_damaged)
        disk.close()
        with self._changed:
            self._moves.leaving.clear()
            self._moves.leaving_bytes = 0
