"""Pages in host memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from router.kv_tiers.books import SlotBooks, Slots
from router.kv_tiers.page_bytes import PageBytes
from router.paging.refill import Block

Leave = Callable[[Block, Callable[[], Tensor]], None]
"""Takes a block that has to go and what returns a copy of its content, [slots, bytes of a slot] uint8."""


class HostTier:
    """Pages in one piece of memory, which the system provides as it is written to.

    A page that comes back to the cache leaves: it would be in memory twice. Only the step loop changes the books;
    `read` may be called from another thread, for slots that were lent.

    Args:
        page_bytes: of the cache.
        limit_bytes: most memory to take.
        leave: called for pages that have to go to make room.
    """

    def __init__(self, page_bytes: PageBytes, limit_bytes: int, leave: Leave) -> None:
        self._page_bytes = page_bytes
        self._books = SlotBooks(limit_bytes // page_bytes.slot_bytes)
        self._rows = torch.empty(self._books.num_slots, page_bytes.slot_bytes, dtype=torch.uint8)
        self._leave = leave

    @property
    def used_bytes(self) -> int:
        """Return the memory in use."""
        return self._books.num_used * self._page_bytes.slot_bytes

    def __contains__(self, block: Block) -> bool:
        """Return whether a block is here."""
        return block in self._books

    def put(self, blocks: Sequence[Block], rows: Tensor) -> None:
        """Store pages of one kind, the first of them as the least recently used.

        Args:
            blocks: of one kind.
            rows: their content [n, bytes of a page] uint8.

        Raises:
            RuntimeError: there is no memory for the copies this needs; pages that were not written are not here.
        """
        fresh: dict[Block, Tensor] = {}
        try:
            self._put(blocks, rows, fresh)
        except RuntimeError:
            for block in fresh:
                self._books.remove(block)
            raise

    def _put(self, blocks: Sequence[Block], rows: Tensor, fresh: dict[Block, Tensor]) -> None:
        """Do so; `fresh` has what has a place and is not written there yet."""
        for block, row in zip(blocks, rows.unflatten(1, (-1, self._page_bytes.slot_bytes)), strict=True):
            if self._books.find(block) is not None:
                continue
            while not self._books.has_room(len(row)) and (oldest := self._books.oldest()) is not None:
                if oldest[0] in fresh:
                    self._write(fresh)
                self._leave(oldest[0], partial(self._copy, oldest[1]))
                self._books.remove(oldest[0])
            if self._books.has_room(len(row)):
                self._books.add(block, len(row))
                fresh[block] = row
            else:  # larger than all there is, or than what is not lent
                self._leave(block, row.clone)
        self._write(fresh)

    def _copy(self, slots: Slots) -> Tensor:
        return self._rows[list(slots)]

    def _write(self, fresh: dict[Block, Tensor]) -> None:
        """Copy content to the slots its blocks were given, all at once: page by page takes many times as long."""
        if fresh:
            slots = [slot for block in fresh for slot in self._books.find(block) or ()]
            rows, word = torch.cat(list(fresh.values())), self._page_bytes.word
            self._rows.view(word).index_copy_(0, torch.tensor(slots), rows.view(word))
            fresh.clear()

    def contents(self) -> Iterator[tuple[Block, Tensor]]:
        """Yield every block and a copy of its content [slots, bytes of a slot], most recently used first."""
        for block, slots in reversed(self._books.blocks()):
            yield block, self._copy(slots)

    def lend(self, block: Block) -> Slots:
        """Give a block away: its slots stay as they are until `give_back`."""
        return self._books.lend(block)

    def give_back(self, slots: Slots) -> None:
        """Take lent slots back: what is in them is forgotten."""
        self._books.give_back(slots)

    def read(self, is_local: bool, lent: Sequence[Slots]) -> Tensor:
        """Return the content of lent pages of one kind, [n, bytes of a page] uint8. Cost: copies it."""
        index = torch.tensor(lent, dtype=torch.int64).flatten()
        return self._rows.index_select(0, index).view(len(lent), self._page_bytes.page_bytes(is_local))

    def check(self) -> None:
        """Verify the books; see SlotBooks."""
        self._books.check()
