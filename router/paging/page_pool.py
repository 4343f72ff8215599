"""The pages of one kind of layer: who holds them, which are free, and which are kept for their content.

    free --take--> held (n >= 1 holders) --last give_back--> free, or kept if it was published
    kept --share--> held            kept --evict, least recently used first--> free

Some free pages are soft-reserved: they follow the last page of a sequence that is expected to grow. They count as
free and go to anybody when no other page is free.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from router.paging.extents import Extents

_FREE_SHARE = 8
"""One page in so many may be free while others are evicted, where no free range is long enough.

Without it the pages of a cache that has filled up once are handed out one by one, wherever the least recently used
one lies: 32 sequences of 600 tokens in a pool of 3,125 pages of 16 had 35 runs each, and have 2.2 with it.
"""


class OutOfPages(Exception):
    """More pages were asked for than are free or evictable; nothing was changed."""


class PagePool:
    """The states of `num_pages` pages.

    Args:
        num_pages: pages are numbered from 0.
        on_evict: called with (page, key) whenever a kept page is dropped to make room.
    """

    def __init__(self, num_pages: int, on_evict: Callable[[int, bytes], None] | None = None) -> None:
        self.num_pages = num_pages
        self.num_evicted = 0
        self._on_evict = on_evict
        self._num_holders = [0] * num_pages
        self._num_held = 0
        self._kept: OrderedDict[int, None] = OrderedDict()  # least recently used first
        self._page_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}
        self._open = Extents()  # free and not reserved
        self._reserved: dict[int, int] = {}  # start -> stop; the page before start is held by whom it is meant for
        self._open.add(0, num_pages)

    @property
    def num_available(self) -> int:
        """Return the pages `take` can give: free and kept."""
        return self.num_pages - self._num_held

    @property
    def num_held(self) -> int:
        """Return the pages with a holder; a shared page counts once."""
        return self._num_held

    @property
    def num_kept(self) -> int:
        """Return the pages nobody holds whose content can still be found."""
        return len(self._kept)

    def num_holders(self, page: int) -> int:
        """Return how many hold this page."""
        return self._num_holders[page]

    def is_published(self, page: int) -> bool:
        """Return whether this page's content can be found by its key."""
        return page in self._key_of

    def take(self, count: int, *, after: int | None = None, expect: int = 0) -> list[int]:
        """Return `count` pages for one holder, consecutive as far as possible.

        Args:
            count: pages needed now.
            after: the last page the holder has: the pages right behind it are preferred.
            expect: pages the holder will probably take next; reserved softly behind the last one.

        Raises:
            OutOfPages: fewer than `count` pages are free or kept; nothing was changed.
        """
        if count > self.num_available:
            raise OutOfPages(f"expected {count} free pages, found {self.num_available} of {self.num_pages}")
        if not count:
            return []
        taken = [] if after is None else self._follow(after + 1, count)
        while len(taken) < count:
            taken += self._open_range(count - len(taken), expect)
        self._reserve(taken[-1] + 1, expect)
        for page in taken:
            self._num_holders[page] = 1
        self._num_held += count
        return taken

    def share(self, page: int) -> None:
        """Add a holder to a page that is held or kept."""
        if self._num_holders[page] == 0:
            assert page in self._kept, f"page {page} is free: it has no content to share"
            del self._kept[page]
            self._num_held += 1
        self._num_holders[page] += 1

    def give_back(self, page: int) -> None:
        """Take a holder from a page; without any it becomes kept if it was published, else free.

        Of pages given back one after another the first is evicted first: give back a sequence's last page first.
        """
        assert self._num_holders[page] > 0, f"page {page} has no holder to give it back"
        self._num_holders[page] -= 1
        if self._num_holders[page]:
            return
        self._num_held -= 1
        start = page + 1
        self._open.add(start, self._reserved.pop(start, start))
        if page in self._key_of:
            self._kept[page] = None
        else:
            self._open.add(page, page + 1)

    def publish(self, page: int, key: bytes) -> int:
        """Make a held page findable, and return the page that is found by `key`: an earlier one, if there is one."""
        assert self._num_holders[page] > 0, f"page {page} is not held: nobody knows its content"
        found = self._page_of.setdefault(key, page)
        if found == page:
            assert self._key_of.setdefault(page, key) == key, f"page {page} is published under another key"
        return found

    def find(self, key: bytes) -> int | None:
        """Return the page published under `key`, held or kept."""
        return self._page_of.get(key)

    def kept(self) -> list[tuple[int, bytes]]:
        """Return (page, key) of every kept page, least recently used first."""
        return [(page, self._key_of[page]) for page in self._kept]

    def clear_kept(self) -> None:
        """Free every kept page."""
        for page in self._kept:
            self._forget(page)
            self._open.add(page, page + 1)
        self._kept.clear()

    def unpublish_all(self) -> None:
        """Free every kept page and let no held page be found: nothing written so far is reused."""
        self.clear_kept()
        self._page_of.clear()
        self._key_of.clear()

    def check(self) -> None:
        """Verify that every page is in exactly one state.

        Raises:
            AssertionError: says what is wrong. This is our bug.
        """
        ranges = self._open.ranges() + list(self._reserved.items())
        free = [page for start, stop in ranges for page in range(start, stop)]
        held = [page for page, holders in enumerate(self._num_holders) if holders]
        assert min(self._num_holders, default=0) >= 0, "a page has a negative number of holders"
        assert len(held) == self._num_held, f"{len(held)} pages are held, {self._num_held} were counted"
        states = sorted(free + held + list(self._kept))
        assert states == list(range(self.num_pages)), "a page is lost or in two of the states free, held and kept"
        assert self._open.num_pages + sum(stop - start for start, stop in self._reserved.items()) == len(free)
        assert {page: key for key, page in self._page_of.items()} == self._key_of, "keys and pages do not match"
        assert self._kept.keys() <= self._key_of.keys(), "a kept page has no key: it can never be found"
        assert not self._key_of.keys() & set(free), "a free page is published"
        for start, stop in self._reserved.items():
            assert start < stop, f"the reservation at page {start} is empty"
            assert self._num_holders[start - 1], f"pages from {start} are reserved for nobody"

    @property
    def _num_free(self) -> int:
        return self.num_pages - self._num_held - len(self._kept)

    def _follow(self, first: int, count: int) -> list[int]:
        """Return up to `count` pages from `first` on: those reserved there, then free ones."""
        stop = self._reserved.pop(first, first)
        end = min(first + count, stop)
        if end < stop:
            self._reserved[end] = stop
            return list(range(first, end))
        num_open = min(first + count - end, self._open.length_at(end))
        self._open.cut(end, num_open)
        return list(range(first, end + num_open))

    def _open_range(self, count: int, expect: int) -> list[int]:
        """Return up to `count` consecutive pages where `expect` more fit, else where most do."""
        self._make_room(count, expect)
        start = self._open.best_start(count + expect)
        assert start is not None, "pages are available, but none was freed"
        length = min(count, self._open.length_at(start))
        self._open.cut(start, length)
        return list(range(start, start + length))

    def _reserve(self, first: int, expect: int) -> None:
        """Keep up to `expect` free pages from `first` on for the holder of the page before."""
        if first not in self._reserved:
            length = min(expect, self._open.length_at(first))
            if length > 0:
                self._open.cut(first, length)
                self._reserved[first] = first + length

    def _make_room(self, count: int, expect: int) -> None:
        """See to it that a page is open, at best a long enough range: reservations go before kept pages."""
        while self._open.longest < count + expect and self._num_free < self.num_pages // _FREE_SHARE and self._kept:
            self._evict()
        if self._open.num_pages:
            return
        if self._reserved:
            start, stop = max(self._reserved.items(), key=lambda item: item[1] - item[0])
            middle = (start + stop) // 2  # its holder keeps the nearer half, and consecutive pages for a while
            if middle == start:
                del self._reserved[start]
            else:
                self._reserved[start] = middle
            self._open.add(middle, stop)
        else:
            self._evict()

    def _evict(self) -> None:
        page, _ = self._kept.popitem(last=False)
        key = self._forget(page)
        self._open.add(page, page + 1)
        self.num_evicted += 1
        if self._on_evict is not None:
            self._on_evict(page, key)

    def _forget(self, page: int) -> bytes:
        key = self._key_of.pop(page)
        del self._page_of[key]
        return key
