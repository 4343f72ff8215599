"""Free pages as extents, so that a sequence gets consecutive pages and its cache is read as one view."""

from __future__ import annotations

from bisect import bisect_left, insort


class Extents:
    """A set of pages as maximal ranges [start, stop): neighbours coalesce, ranges are found by size.

    Cost: O(log n) comparisons in the number of ranges, and one memory move of n pointers, per change.
    """

    def __init__(self) -> None:
        self._stop_of: dict[int, int] = {}
        self._start_of: dict[int, int] = {}
        self._by_size: list[tuple[int, int]] = []  # (length, start), ascending
        self._num_pages = 0

    @property
    def num_pages(self) -> int:
        """Return how many pages the set holds."""
        return self._num_pages

    @property
    def longest(self) -> int:
        """Return the length of the longest range, 0 when the set is empty."""
        return self._by_size[-1][0] if self._by_size else 0

    def ranges(self) -> list[tuple[int, int]]:
        """Return every range (start, stop), ascending."""
        return sorted(self._stop_of.items())

    def length_at(self, start: int) -> int:
        """Return the length of the range that starts exactly at `start`, 0 when none does."""
        return self._stop_of.get(start, start) - start

    def best_start(self, count: int) -> int | None:
        """Return the start of the smallest range of at least `count` pages, else of the largest; None when empty."""
        if not self._by_size:
            return None
        place = bisect_left(self._by_size, (count, -1))
        return self._by_size[min(place, len(self._by_size) - 1)][1]

    def add(self, start: int, stop: int) -> None:
        """Add the pages [start, stop), none of which may be in the set."""
        if start >= stop:
            return
        self._num_pages += stop - start
        if stop in self._stop_of:
            stop = self._remove(stop)
        before = self._start_of.get(start)
        if before is not None:
            self._remove(before)
            start = before
        self._insert(start, stop)

    def cut(self, start: int, count: int) -> None:
        """Take the first `count` pages out of the range that starts at `start`."""
        assert count <= self.length_at(start), f"no {count} free pages at {start}"
        if count:
            stop = self._remove(start)
            self._num_pages -= count
            if start + count < stop:
                self._insert(start + count, stop)

    def _insert(self, start: int, stop: int) -> None:
        self._stop_of[start] = stop
        self._start_of[stop] = start
        insort(self._by_size, (stop - start, start))

    def _remove(self, start: int) -> int:
        stop = self._stop_of.pop(start)
        del self._start_of[stop]
        del self._by_size[bisect_left(self._by_size, (stop - start, start))]
        return stop
