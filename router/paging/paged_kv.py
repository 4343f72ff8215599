"""The cache's books: which pages a sequence may reuse, needs, publishes and gives back. All the scheduler talks to.

    chunk boundaries   |                |                |                |
    global pages       [ every token ..................................... p ]
    local pages                                          [ current chunk . p ]

A sequence resumes behind a cached prefix of p tokens when every global page of [0, p) and every local page of p's chunk
can be found. Positions are absolute, and so are keys: a page is reused only where it was computed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain as joined

from protos.errors import BadConfig
from router.paging.blocks import BlockChain
from router.paging.chunks import chunk_start
from router.paging.page_pool import OutOfPages, PagePool
from router.paging.page_table import PageTable
from router.paging.refill import Block, Gap, Refill
from router.paging.sequence_pages import SequencePages

_EXPECT_AHEAD_TOKENS = 2048
"""Most tokens behind what is known for which consecutive pages are reserved softly."""


@dataclass(frozen=True, slots=True)
class PagingPlan:
    """How many pages of how many tokens there are."""

    page_tokens: int
    """Tokens per page."""
    chunk: int | None
    """Positions that see each other in local layers, a multiple of `page_tokens`; None: no local layers."""
    has_global: bool
    """Whether some layers keep every token."""
    num_global_pages: int
    num_local_pages: int

    def __post_init__(self) -> None:
        if self.page_tokens < 1 or (self.chunk is not None and (self.chunk < 1 or self.chunk % self.page_tokens)):
            raise BadConfig(
                f"expected an attention chunk that is a multiple of the page, found chunks of {self.chunk} tokens and "
                f"pages of {self.page_tokens}: choose a page that divides the chunk"
            )
        if not self.has_global and self.chunk is None:
            raise BadConfig("expected global or local layers, found neither: check the model's layer kinds")


@dataclass(frozen=True, slots=True)
class PageCopy:
    """A page whose content must be copied before either sequence goes on."""

    is_local: bool
    source: int
    target: int


class PagedKv:
    """The pages of all sequences in both pools.

    A model without one kind of layer leaves that pool unused. Not for several threads.
    """

    def __init__(self, plan: PagingPlan) -> None:
        self.plan = plan
        self.on_evict: Callable[[Block, int], None] = lambda block, page: None
        """Called with a kept page that is dropped; its content stays until the page is written."""
        num_global = plan.num_global_pages if plan.has_global else 0
        num_local = plan.num_local_pages if plan.chunk is not None else 0
        self.global_pool = PagePool(num_global, lambda page, key: self.on_evict((False, key), page))
        self.local_pool = PagePool(num_local, lambda page, key: self.on_evict((True, key), page))
        self._live: set[SequencePages] = set()
        self._refills: set[Refill] = set()
        self._announced: Counter[bytes] = Counter()

    @property
    def num_evicted(self) -> int:
        """Return how many kept pages were dropped to make room, in both pools, since the start."""
        return self.global_pool.num_evicted + self.local_pool.num_evicted

    @property
    def num_sequences(self) -> int:
        """Return how many sequences are admitted."""
        return len(self._live)

    def num_used_pages(self) -> tuple[int, int]:
        """Return how many (global, local) pages sequences hold; a shared page counts once."""
        return self.global_pool.num_held, self.local_pool.num_held

    def num_kept_pages(self) -> tuple[int, int]:
        """Return how many (global, local) pages are kept for their content alone; they are given when asked for."""
        return self.global_pool.num_kept, self.local_pool.num_kept

    def admit(
        self, ids: Sequence[int], *, expect_tokens: int, use_cached: bool = True, chain: BlockChain | None = None
    ) -> SequencePages:
        """Start a sequence that shares the pages of its longest reusable prefix, and announce what it will compute.

        Takes no new pages. At least one token is left to compute: its output is what the caller came for.

        Args:
            ids: the tokens known so far.
            expect_tokens: how long the sequence will probably get; a hint that keeps its pages consecutive.
            use_cached: whether to look for a prefix.
            chain: of these ids, from an earlier look; it belongs to the sequence from now on.
        """
        size = self.plan.page_tokens
        chain = self._chain(ids, chain)
        num_blocks = self._num_reusable(chain.keys, len(ids)) if use_cached else 0
        first_local = chunk_start(num_blocks * size, self.plan.chunk) // size
        pages = SequencePages(
            global_table=PageTable(size),
            local_table=PageTable(size, first_local),
            chain=chain,
            num_tokens=num_blocks * size,
            num_cached=num_blocks * size,
            num_reserved=num_blocks * size,
            num_prompt=len(ids),
            expect_tokens=expect_tokens,
            announced=set(chain.keys[num_blocks : len(ids) // size]),
        )
        if self.plan.has_global:
            _share(self.global_pool, pages.global_table, self._found(self.global_pool, chain.keys[:num_blocks]))
        if self.plan.chunk is not None:
            local_keys = chain.keys[first_local:num_blocks]
            _share(self.local_pool, pages.local_table, self._found(self.local_pool, local_keys))
        self._announced.update(pages.announced)
        self._live.add(pages)
        return pages

    def is_coming(self, ids: Sequence[int], *, chain: BlockChain | None = None) -> bool:
        """Return whether the first block `admit` would miss is being computed, so that waiting for it saves work.

        Args:
            ids: as for `admit`.
            chain: of these ids, to hash them only once; it is extended to them.
        """
        if not self._announced:
            return False
        keys = self._chain(ids, chain).keys
        num_blocks = self._num_reusable(keys, len(ids))
        return num_blocks < self._most_blocks(len(ids)) and keys[num_blocks] in self._announced

    def num_wanted(
        self, ids: Sequence[int], *, use_cached: bool = True, chain: BlockChain | None = None
    ) -> tuple[int, int]:
        """Return how many available (global, local) pages a sequence would take until all of `ids` are computed.

        Pages that another sequence holds and this one can share cost nothing; kept ones do, like free ones.

        Args:
            ids: as for `admit`.
            use_cached: as for `admit`.
            chain: as for `is_coming`.
        """
        size = self.plan.page_tokens
        num_pages = -(-len(ids) // size)
        chunk_pages = num_pages if self.plan.chunk is None else self.plan.chunk // size
        num_global = num_pages if self.plan.has_global else 0
        num_local = 0 if self.plan.chunk is None else min(num_pages, chunk_pages)
        if not use_cached:
            return num_global, num_local
        keys = self._chain(ids, chain).keys
        num_blocks = self._num_reusable(keys, len(ids))
        first_local = chunk_start(num_blocks * size, self.plan.chunk) // size
        held_global = self._num_held(self.global_pool, keys[:num_blocks])
        held_local = self._num_held(self.local_pool, keys[first_local:num_blocks])
        # Once the chunk is over its shared pages go, and the next chunk's are this sequence's own.
        is_last_chunk = num_pages - first_local <= chunk_pages
        return max(num_global - held_global, 0), max(num_local - held_local, 0) if is_last_chunk else num_local

    def begin_at(self, num_tokens: int) -> SequencePages:
        """Start a sequence whose first tokens this cache need not have: global layers' keys are elsewhere.

        Args:
            num_tokens: positions before the first that will be computed; whole chunks, so that local layers see none.
        """
        size, chunk = self.plan.page_tokens, self.plan.chunk
        assert not self.plan.has_global, "global layers see every token"
        assert chunk is None or num_tokens % chunk == 0, f"{num_tokens} tokens do not end with a chunk"
        pages = SequencePages(
            global_table=PageTable(size),
            local_table=PageTable(size, num_tokens // size),
            chain=BlockChain(size),
            num_tokens=num_tokens,
            num_reserved=num_tokens,
        )
        self._live.add(pages)
        return pages

    def gap(self, ids: Sequence[int], chain: BlockChain, has: Callable[[Block], bool]) -> Gap:
        """Return what a prompt could share if what is elsewhere came back; empty if that is no more than now.

        Args:
            ids: as for `admit`.
            chain: as for `is_coming`.
            has: whether a block's content is elsewhere.
        """
        keys = self._chain(ids, chain).keys
        num_found = self._num_reusable(keys, len(ids))
        num_blocks = self._num_reusable(keys, len(ids), has)
        if num_blocks <= num_found:
            return Gap((), 0, ())
        blocks = self._blocks(keys[:num_blocks])
        missing = (block for block in blocks if self._pool(block).find(block[1]) is None)
        return Gap(tuple(keys[:num_blocks]), num_found, tuple(missing))

    def refill(self, gap: Gap) -> Refill:
        """Hold a page for each block of a gap, and those the prefix has anyhow; announce what will be found.

        Nobody finds the new pages before `finish_refill`, which must follow whatever happens.

        Args:
            gap: found a moment ago, nothing was changed since.

        Raises:
            OutOfPages: a pool has too few; nothing was changed.
        """
        blocks = self._blocks(gap.keys)
        wanted = [0, 0]
        for block in blocks:
            page = self._pool(block).find(block[1])
            wanted[block[0]] += page is None or not self._pool(block).num_holders(page)
        available = self.global_pool.num_available, self.local_pool.num_available
        if wanted[0] > available[0] or wanted[1] > available[1]:
            raise OutOfPages(f"expected {wanted} global and local pages, found {available}: release a sequence")
        held: tuple[list[int], list[int]] = ([], [])
        for is_local, key in blocks:  # first: else taking pages could evict them
            page = self._pool((is_local, key)).find(key)
            if page is not None:
                self._pool((is_local, key)).share(page)
        fresh = {
            is_local: iter(pool.take(sum(block[0] == is_local for block in gap.missing)))
            for is_local, pool in ((False, self.global_pool), (True, self.local_pool))
        }
        pages = {block: next(fresh[block[0]]) for block in gap.missing}
        refill = Refill(pages, gap.keys[gap.num_found :], held)
        for block in blocks:
            page = self._pool(block).find(block[1])
            held[block[0]].append(refill.pages[block] if page is None else page)
        self._announced.update(refill.announced)
        self._refills.add(refill)
        return refill

    def give_up_refill(self, refill: Refill) -> None:
        """Let nobody wait for a refill any longer: nothing of it will be published. Again is no harm."""
        if refill.is_current:
            refill.is_current = False
            for key in refill.announced:
                self._unannounce(key)

    def finish_refill(self, refill: Refill, lost: Container[Block]) -> None:
        """Publish the pages that got their content, and keep them: whoever begins alike finds them now.

        Args:
            refill: under way.
            lost: blocks whose page was not written, or not with what it should have got.
        """
        self._refills.remove(refill)
        if refill.is_current:
            for block, page in refill.pages.items():
                if block not in lost:
                    self._pool(block).publish(page, block[1])
            self.give_up_refill(refill)
        _give_back(self.global_pool, refill.held[False])
        _give_back(self.local_pool, refill.held[True])

    def kept_blocks(self) -> list[tuple[Block, int]]:
        """Return (block, page) of every kept page, global ones first, each kind least recently used first."""
        pools = ((False, self.global_pool), (True, self.local_pool))
        return [((is_local, key), page) for is_local, pool in pools for page, key in pool.kept()]

    def _blocks(self, keys: Sequence[bytes]) -> list[Block]:
        """Return what a prefix of these blocks consists of."""
        size = self.plan.page_tokens
        blocks = [(False, key) for key in keys] if self.plan.has_global else []
        if self.plan.chunk is not None:
            blocks += [(True, key) for key in keys[chunk_start(len(keys) * size, self.plan.chunk) // size :]]
        return blocks

    def _pool(self, block: Block) -> PagePool:
        return self.local_pool if block[0] else self.global_pool

    def _num_held(self, pool: PagePool, keys: Sequence[bytes]) -> int:
        return sum(pool.num_holders(page) > 0 for key in keys if (page := pool.find(key)) is not None)

    def num_missing(self, pages: SequencePages, num_tokens: int) -> tuple[int, int]:
        """Return how many new (global, local) pages the next `num_tokens` positions need."""
        needed = -(-(pages.num_tokens + num_tokens) // self.plan.page_tokens)
        num_global = max(0, needed - pages.global_table.num_pages) if self.plan.has_global else 0
        num_local = max(0, needed - pages.local_table.num_pages) if self.plan.chunk is not None else 0
        return num_global, num_local

    def can_grow(self, pages: SequencePages, num_tokens: int) -> bool:
        """Return whether `grow` would succeed."""
        num_global, num_local = self.num_missing(pages, num_tokens)
        return num_global <= self.global_pool.num_available and num_local <= self.local_pool.num_available

    def grow(self, pages: SequencePages, num_tokens: int) -> None:
        """Hold pages for the next `num_tokens` positions: of every chunk they touch, until `advance`.

        Raises:
            OutOfPages: a pool has too few; nothing was changed.
        """
        if pages.num_tokens + num_tokens <= pages.num_reserved:
            return
        assert pages in self._live, "the sequence was released: it holds no pages"
        num_global, num_local = self.num_missing(pages, num_tokens)
        if not self.can_grow(pages, num_tokens):
            raise OutOfPages(
                f"expected {num_global} global and {num_local} local pages, found {self.global_pool.num_available} "
                f"and {self.local_pool.num_available}: release a sequence"
            )
        size = self.plan.page_tokens
        reserved = -(-(pages.num_tokens + num_tokens) // size) * size
        expected = max(reserved, min(pages.expect_tokens, max(pages.num_prompt, reserved) + _EXPECT_AHEAD_TOKENS))
        _extend(self.global_pool, pages.global_table, num_global, -(-(expected - reserved) // size))
        if self.plan.chunk is not None:
            # reserved - 1: at the very end of a chunk nothing more of it is to come
            expected = min(expected, chunk_start(reserved - 1, self.plan.chunk) + self.plan.chunk)
            _extend(self.local_pool, pages.local_table, num_local, -(-(expected - reserved) // size))
        pages.num_reserved = reserved

    def advance(self, pages: SequencePages, ids: Sequence[int], num_tokens: int, *, publish: bool = True) -> None:
        """Note that the next `num_tokens` positions are computed: publish full pages, drop chunks that are over.

        Args:
            pages: of the sequence, which `grow` made large enough.
            ids: its tokens, at least those computed now.
            num_tokens: how many.
            publish: whether others may find the pages that became full.
        """
        start, stop = pages.num_tokens, pages.num_tokens + num_tokens
        assert stop <= pages.num_reserved, f"{stop} tokens were computed in pages for {pages.num_reserved}"
        pages.num_tokens = stop
        first, last = start // self.plan.page_tokens, stop // self.plan.page_tokens
        if first == last:
            return
        if publish and pages.is_current:
            pages.chain.extend(ids, stop)
            self._publish(pages, first, last)
        self._withdraw(pages, pages.chain.keys[first:last])
        dropped = pages.local_table.drop_front(chunk_start(stop, self.plan.chunk) // self.plan.page_tokens)
        _give_back(self.local_pool, dropped)

    def release(self, pages: SequencePages) -> None:
        """Give everything back; what was published stays findable until its page is needed. Again is no harm."""
        if pages not in self._live:
            return
        self._live.remove(pages)
        self._withdraw(pages, list(pages.announced))
        _give_back(self.global_pool, pages.global_table.pages())
        _give_back(self.local_pool, pages.local_table.pages())
        pages.global_table = PageTable(self.plan.page_tokens)
        pages.local_table = PageTable(self.plan.page_tokens)
        pages.chain = BlockChain(self.plan.page_tokens)
        pages.num_tokens = pages.num_cached = pages.num_reserved = 0

    def fork(self, pages: SequencePages) -> tuple[SequencePages, list[PageCopy]]:
        """Return a second sequence with the same tokens: full pages are shared, a partly filled one is copied.

        It announces nothing: what both will compute the first one announces.

        Raises:
            OutOfPages: no page for the copy; nothing was changed.
        """
        assert pages in self._live, "the sequence was released: it has no content to fork"
        num_full, partial = divmod(pages.num_tokens, self.plan.page_tokens)
        pools = self._kinds(pages)
        for _, pool, _ in pools:
            if partial and not pool.num_available:
                raise OutOfPages(f"expected 1 free page for a copy, found 0 of {pool.num_pages}: release a sequence")
        copies: list[PageCopy] = []
        tables = {kind: PageTable(self.plan.page_tokens, table.first) for kind, _, table in pools}
        for is_local, pool, table in pools:
            forked = tables[is_local]
            _share(pool, forked, (table.page(index) for index in range(table.first, num_full)))
            if partial:
                expect = max(0, -(-(pages.expect_tokens - pages.num_tokens) // self.plan.page_tokens))
                _extend(pool, forked, 1, min(expect, _EXPECT_AHEAD_TOKENS // self.plan.page_tokens))
                copies.append(PageCopy(is_local, table.page(num_full), forked.page(num_full)))
        twin = SequencePages(
            global_table=tables.get(False, PageTable(self.plan.page_tokens)),
            local_table=tables.get(True, PageTable(self.plan.page_tokens)),
            chain=pages.chain.copy(num_full),  # what comes next may differ
            num_tokens=pages.num_tokens,
            num_cached=pages.num_cached,
            num_reserved=(num_full + bool(partial)) * self.plan.page_tokens,
            expect_tokens=pages.expect_tokens,
            num_prompt=pages.num_prompt,
            is_current=pages.is_current,
        )
        self._live.add(twin)
        return twin, copies

    def clear_cache(self) -> None:
        """Forget all that was computed and all that running sequences still compute: for when the weights change."""
        self.global_pool.unpublish_all()
        self.local_pool.unpublish_all()
        for pages in self._live:
            pages.is_current = False
            self._withdraw(pages, list(pages.announced))
        for refill in self._refills:
            self.give_up_refill(refill)

    def check(self) -> None:
        """Verify every invariant of the books.

        Raises:
            AssertionError: says what is wrong. This is our bug.
        """
        self.global_pool.check()
        self.local_pool.check()
        announced: Counter[bytes] = Counter()
        for pages in self._live:
            self._check_sequence(pages)
            announced.update(pages.announced)
        for refill in self._refills:
            announced.update(refill.announced if refill.is_current else ())
        assert announced == self._announced, "announced keys do not belong to live sequences"
        tables = [(pages.global_table.pages(), pages.local_table.pages()) for pages in self._live]
        tables += [refill.held for refill in self._refills]
        self._check_holders(self.global_pool, [held for held, _ in tables])
        self._check_holders(self.local_pool, [held for _, held in tables])

    def _check_sequence(self, pages: SequencePages) -> None:
        size = self.plan.page_tokens
        assert pages.num_cached <= pages.num_tokens <= pages.num_reserved, "more tokens than pages are held for"
        for is_local, pool, table in self._kinds(pages):
            kind = "local" if is_local else "global"
            first = chunk_start(pages.num_tokens, self.plan.chunk) // size if is_local else 0
            assert table.first == first, f"the first {kind} page held is {table.first}, expected {first}"
            assert table.num_pages * size == pages.num_reserved, f"{kind} pages do not end at {pages.num_reserved}"
            for index in range(pages.num_tokens // size, table.num_pages):
                page = table.page(index)
                assert pool.num_holders(page) == 1, f"{kind} page {page} is shared and will be written"
                assert not pool.is_published(page), f"{kind} page {page} is published and will be written"

    @staticmethod
    def _check_holders(pool: PagePool, tables: list[list[int]]) -> None:
        holders = Counter(joined.from_iterable(tables))
        for page in range(pool.num_pages):
            counted = pool.num_holders(page)
            assert counted == holders[page], f"page {page} is in {holders[page]} tables, {counted} holders are counted"

    def _kinds(self, pages: SequencePages) -> list[tuple[bool, PagePool, PageTable]]:
        """Return (is local, pool, table) of the kinds of layers this model has."""
        kinds = []
        if self.plan.has_global:
            kinds.append((False, self.global_pool, pages.global_table))
        if self.plan.chunk is not None:
            kinds.append((True, self.local_pool, pages.local_table))
        return kinds

    def _chain(self, ids: Sequence[int], chain: BlockChain | None) -> BlockChain:
        if chain is None:
            return BlockChain(self.plan.page_tokens, ids)
        chain.extend(ids, len(ids))
        return chain

    def _most_blocks(self, num_tokens: int) -> int:
        """Return how many blocks a prefix may have that leaves a token to compute."""
        return max(0, num_tokens - 1) // self.plan.page_tokens

    def _num_reusable(
        self, keys: Sequence[bytes], num_tokens: int, has: Callable[[Block], bool] = lambda block: False
    ) -> int:
        """Return how many blocks can be reused, those included that something else `has`."""
        most = self._most_blocks(num_tokens)
        num_blocks = self._num_found(False, keys, 0, most, has) if self.plan.has_global else most
        if self.plan.chunk is None:
            return num_blocks
        start = chunk_start(num_blocks * self.plan.page_tokens, self.plan.chunk) // self.plan.page_tokens
        return self._num_found(True, keys, start, num_blocks, has)

    def _num_found(
        self, is_local: bool, keys: Sequence[bytes], start: int, stop: int, has: Callable[[Block], bool]
    ) -> int:
        """Return the first index in [start, stop) whose key is neither published nor elsewhere, else `stop`."""
        pool = self.local_pool if is_local else self.global_pool
        while start < stop and (pool.find(keys[start]) is not None or has((is_local, keys[start]))):
            start += 1
        return start

    @staticmethod
    def _found(pool: PagePool, keys: Sequence[bytes]) -> Iterator[int]:
        for key in keys:
            page = pool.find(key)
            assert page is not None, "a page that was found is gone"
            yield page

    def _publish(self, pages: SequencePages, first: int, last: int) -> None:
        for _, pool, table in self._kinds(pages):
            for index in range(first, last):
                pool.publish(table.page(index), pages.chain.keys[index])

    def _withdraw(self, pages: SequencePages, keys: Sequence[bytes]) -> None:
        """Announce these keys no longer."""
        for key in keys:
            if key in pages.announced:
                pages.announced.remove(key)
                self._unannounce(key)

    def _unannounce(self, key: bytes) -> None:
        self._announced[key] -= 1
        if not self._announced[key]:
            del self._announced[key]


def _share(pool: PagePool, table: PageTable, found: Iterator[int]) -> None:
    shared = list(found)
    for page in shared:
        pool.share(page)
    table.append(shared)


def _extend(pool: PagePool, table: PageTable, count: int, expect: int) -> None:
    if count:
        table.append(pool.take(count, after=table.last_page, expect=expect))


def _give_back(pool: PagePool, pages: Sequence[int]) -> None:
    """Give back the last page first: a block without its parents is of no use, so it must go first."""
    for page in reversed(pages):
        pool.give_back(page)
