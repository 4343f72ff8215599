"""One sequence's pages of one pool, as runs of consecutive pages.

    index    first ............................. num_pages
    run      [page 40, 41, 42][page 7, 8][page 90 ...]      positions are index * page_tokens + offset

Indices count a sequence's pages from its position 0; pages before `first` were dropped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

import numpy as np


class PageTable:
    """Where a sequence's tokens are.

    Args:
        page_tokens: tokens per page.
        first: index of the first page that will be appended.

    Cost: nothing here depends on the number of pages except what returns them one by one.
    """

    def __init__(self, page_tokens: int, first: int = 0) -> None:
        self.page_tokens = page_tokens
        self.first = first
        self.num_pages = first
        self._indices: list[int] = []  # of each run's first page
        self._pages: list[int] = []  # its number

    @property
    def num_held(self) -> int:
        """Return how many pages the table holds."""
        return self.num_pages - self.first

    @property
    def num_runs(self) -> int:
        """Return in how many runs of consecutive pages they lie."""
        return len(self._pages)

    @property
    def last_page(self) -> int | None:
        """Return the page at index `num_pages` - 1, None when the table is empty."""
        return self._pages[-1] + self.num_pages - 1 - self._indices[-1] if self._pages else None

    def append(self, pages: Iterable[int]) -> None:
        """Add pages at index `num_pages` and following."""
        last = self.last_page
        for page in pages:
            if last is None or page != last + 1:
                self._indices.append(self.num_pages)
                self._pages.append(page)
            self.num_pages += 1
            last = page

    def drop_front(self, until_index: int) -> list[int]:
        """Forget the pages before `until_index`, and return them in order."""
        until_index = min(until_index, self.num_pages)
        if until_index <= self.first:
            return []
        dropped = [page for start, stop in self._ranges(self.first, until_index) for page in range(start, stop)]
        self.first = until_index
        if until_index == self.num_pages:
            self._indices.clear()
            self._pages.clear()
            return dropped
        run = bisect_right(self._indices, until_index) - 1
        del self._indices[:run], self._pages[:run]
        self._pages[0] += until_index - self._indices[0]
        self._indices[0] = until_index
        return dropped

    def page(self, index: int) -> int:
        """Return the page at `index`."""
        assert self.first <= index < self.num_pages, f"page {index} is not in [{self.first}, {self.num_pages})"
        run = -1 if index >= self._indices[-1] else bisect_right(self._indices, index) - 1
        return self._pages[run] + index - self._indices[run]

    def slot(self, position: int) -> int:
        """Return where in the pool the token at `position` is: page * page_tokens + position % page_tokens."""
        index, offset = divmod(position, self.page_tokens)
        return self.page(index) * self.page_tokens + offset

    def slots(self, start: int, stop: int) -> list[int]:
        """Return the slots of positions [start, stop), in order."""
        return [slot for first, length in self.pieces(start, stop) for slot in range(first, first + length)]

    def pieces(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return (first slot, tokens) of the ranges of consecutive slots that hold positions [start, stop)."""
        if start >= stop:
            return []
        size = self.page_tokens
        ranges = list(self._ranges(start // size, -(-stop // size)))
        pieces = [(first * size, (last - first) * size) for first, last in ranges]
        slot, length = pieces[0]
        pieces[0] = (slot + start % size, length - start % size)
        slot, length = pieces[-1]
        pieces[-1] = (slot, length - -stop % size)
        return pieces

    def pages_of(self, start: int, stop: int) -> np.ndarray:
        """Return the pages [pages] int32 that hold positions [start, stop), in order."""
        if start >= stop:
            return np.empty(0, dtype=np.int32)
        ranges = self._ranges(start // self.page_tokens, -(-stop // self.page_tokens))
        return np.concatenate([np.arange(*run, dtype=np.int32) for run in ranges])

    def pages(self) -> list[int]:
        """Return every page held, in order."""
        return [page for start, stop in self._ranges(self.first, self.num_pages) for page in range(start, stop)]

    def _ranges(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the pages at indices [start, stop) as ranges of consecutive pages."""
        if start >= stop:
            return
        assert self.first <= start, f"page {start} was dropped: the first one held is {self.first}"
        assert stop <= self.num_pages, f"page {stop - 1} was never appended: there are {self.num_pages}"
        for run in range(bisect_right(self._indices, start) - 1, len(self._indices)):
            index = self._indices[run]
            if index >= stop:
                return
            end = self._indices[run + 1] if run + 1 < len(self._indices) else self.num_pages
            offset = self._pages[run] - index
            yield max(index, start) + offset, min(end, stop) + offset
