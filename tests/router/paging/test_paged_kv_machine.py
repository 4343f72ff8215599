"""Any interleaving of requests: every sequence reads back its own tokens, and no page is lost, doubled or mixed up.

Instead of keys and values, each slot of either pool holds a hash of all tokens up to the one written there: what the
keys and values of a real model are a function of.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from router.paging.blocks import BlockChain
from router.paging.page_pool import OutOfPages, PagePool
from router.paging.page_table import PageTable
from router.paging.paged_kv import PagedKv, PagingPlan
from router.paging.refill import Block, Gap, Refill
from router.paging.sequence_pages import SequencePages

PAGE = 4
CHUNK = 16
PREFIXES = [list(range(first, first + 45)) for first in (100, 200, 200)]
PREFIXES[2][21:] = range(500, 524)  # parts from the second one in the middle of a page of its second chunk


@dataclass(eq=False)
class Running:
    """A sequence, its tokens and what it holds."""

    ids: list[int]
    num_prompt: int
    pages: SequencePages
    forks: int = 0
    hashes: list[int] = field(default_factory=list)

    def content(self, position: int) -> int:
        """Return the hash of the tokens up to this position."""
        while len(self.hashes) <= position:
            self.hashes.append(hash((self.hashes[-1] if self.hashes else 0, self.ids[len(self.hashes)])))
        return self.hashes[position]


class PagedKvMachine(RuleBasedStateMachine):
    """Drives the books as a scheduler would, and plays the tensors."""

    sequences = Bundle("sequences")

    def __init__(self) -> None:
        super().__init__()
        self.written: dict[tuple[bool, int], int] = {}
        self.running: list[Running] = []
        self.num_admitted = 0
        self.away: dict[Block, list[int]] = {}
        self.refills: list[tuple[list[int], Gap, Refill]] = []

    @initialize(
        kinds=st.sampled_from([(CHUNK, True), (CHUNK, True), (None, True), (CHUNK, False)]),
        num_global=st.integers(8, 80),
        num_local=st.integers(5, 50),
        uses_cache=st.sampled_from([True, True, True, False]),
    )
    def start(self, kinds: tuple[int | None, bool], num_global: int, num_local: int, uses_cache: bool) -> None:
        self.kv = PagedKv(PagingPlan(PAGE, *kinds, num_global, num_local))
        self.kv.on_evict = self.take_away
        self.uses_cache = uses_cache

    # What a scheduler does.

    @rule(
        target=sequences,
        prefix=st.sampled_from(PREFIXES),
        length=st.integers(1, 45),
        own=st.lists(st.integers(0, 1), max_size=3),
        expect=st.integers(0, 80),
    )
    def admit(self, prefix: list[int], length: int, own: list[int], expect: int) -> object:
        return self.admitted(prefix[:length] + own, expect)

    @rule(target=sequences, sequence=consumes(sequences), expect=st.integers(0, 80))
    def preempt_and_admit_again(self, sequence: Running, expect: int) -> object:
        self.cancel(sequence)
        return self.admitted(sequence.ids, expect)

    @rule(share=st.sampled_from([0.3, 0.6, 1.0]), is_local=st.booleans())
    def need_the_memory_for_a_moment(self, share: float, is_local: bool) -> None:
        """Take pages, so that kept ones are evicted."""
        pool = self.pool(is_local)
        for page in pool.take(int(pool.num_available * share)):
            pool.give_back(page)

    @rule(prefix=st.sampled_from(PREFIXES), length=st.integers(20, 45))
    def begin_to_refill(self, prefix: list[int], length: int) -> None:
        """Hold pages for what was evicted of a prefix."""
        ids = prefix[:length]
        gap = self.kv.gap(ids, BlockChain(PAGE), self.away.__contains__)
        if not gap.missing:
            return
        held, content = self.kv.num_used_pages(), {block: self.away[block] for block in gap.missing}
        try:
            refill = self.kv.refill(gap)
        except OutOfPages:
            assert self.kv.num_used_pages() == held
            return
        for (is_local, key), page in refill.pages.items():
            assert self.pool(is_local).num_holders(page) == 1
            for offset, number in enumerate(content[is_local, key]):
                self.written[is_local, page * PAGE + offset] = number
        self.refills.append((ids, gap, refill))

    @precondition(lambda self: self.refills)
    @rule(loses=st.booleans(), index=st.integers(0, 9))
    def finish_a_refill(self, loses: bool, index: int) -> None:
        ids, gap, refill = self.refills.pop(index % len(self.refills))
        lost = set(list(refill.pages)[::2]) if loses else set()
        for is_local, key in lost:
            for offset in range(PAGE):
                self.written[is_local, refill.pages[is_local, key] * PAGE + offset] = 0
        was_current = refill.is_current
        self.kv.finish_refill(refill, lost)
        if was_current and not lost and self.uses_cache:
            found = self.kv.gap(ids, BlockChain(PAGE), lambda block: False)
            assert not found.missing
            pages = self.kv.admit(ids, expect_tokens=0)
            assert pages.num_cached == len(gap.keys) * PAGE
            self.kv.release(pages)

    @precondition(lambda self: self.refills)
    @rule(index=st.integers(0, 9))
    def give_up_a_refill(self, index: int) -> None:
        self.kv.give_up_refill(self.refills[index % len(self.refills)][2])

    @rule(prefix=st.sampled_from(PREFIXES), length=st.integers(1, 45), step=st.integers(1, 24))
    def start_with_as_many_pages_as_wanted(self, prefix: list[int], length: int, step: int) -> None:
        """A sequence that may start by `num_wanted` can compute all it has, and wants no more than that."""
        kv, ids = self.kv, prefix[:length]
        wanted = kv.num_wanted(ids, use_cached=self.uses_cache)
        available = kv.global_pool.num_available, kv.local_pool.num_available
        if wanted[0] > available[0] or wanted[1] > available[1]:
            return
        sequence = self.admitted(ids, length)
        while sequence.pages.num_tokens < length:
            # Local pages of one chunk are counted: a step must not cross into the next one.
            num_tokens = min(step, length - sequence.pages.num_tokens, CHUNK - sequence.pages.num_tokens % CHUNK)
            kv.grow(sequence.pages, num_tokens)
            self.write_and_advance(sequence, num_tokens)
        assert available[0] - kv.global_pool.num_available == wanted[0]
        self.cancel(sequence)

    @rule(sequence=sequences, num_tokens=st.integers(1, 24))
    def compute(self, sequence: Running, num_tokens: int) -> None:
        kv, pages = self.kv, sequence.pages
        before = self.state(sequence)
        can_grow = kv.can_grow(pages, num_tokens)
        try:
            kv.grow(pages, num_tokens)
        except OutOfPages:
            assert not can_grow
            assert self.state(sequence) == before
            return
        assert can_grow
        self.write_and_advance(sequence, num_tokens)

    @rule(sequence=sequences, grown=st.integers(1, 24), computed=st.integers(0, 24))
    def compute_less_than_grown(self, sequence: Running, grown: int, computed: int) -> None:
        if self.kv.can_grow(sequence.pages, grown):
            self.kv.grow(sequence.pages, grown)
            self.kv.check()
            self.write_and_advance(sequence, min(grown, computed))

    @rule(num_tokens=st.integers(1, 3))
    def compute_a_batch(self, num_tokens: int) -> None:
        grown = []
        for sequence in self.running:
            try:
                self.kv.grow(sequence.pages, num_tokens)
            except OutOfPages:
                continue
            grown.append(sequence)
        for sequence in grown:
            self.write_and_advance(sequence, num_tokens)

    @rule(target=sequences, sequence=sequences)
    def fork(self, sequence: Running) -> object:
        before = self.state(sequence)
        try:
            pages, copies = self.kv.fork(sequence.pages)
        except OutOfPages:
            assert sequence.pages.num_tokens % PAGE
            assert self.state(sequence) == before
            return multiple()
        for copy in copies:
            for offset in range(PAGE):
                content = self.written.get((copy.is_local, copy.source * PAGE + offset), 0)
                self.written[copy.is_local, copy.target * PAGE + offset] = content
        # From here on both go different ways: what was known of the future is cut off.
        sequence.forks += 1
        ids = [*sequence.ids[: max(1, pages.num_tokens)], 7000 + sequence.forks]
        twin = Running(ids, min(sequence.num_prompt, len(ids)), pages)
        self.running.append(twin)
        return twin

    @rule(sequence=consumes(sequences))
    def cancel(self, sequence: Running) -> None:
        self.kv.release(sequence.pages)
        self.kv.release(sequence.pages)
        self.running.remove(sequence)

    @rule()
    def clear_cache(self) -> None:
        self.kv.clear_cache()
        self.away.clear()
        assert self.kv.num_kept_pages() == (0, 0)

    # What must hold after each step.

    @invariant()
    def the_books_are_right(self) -> None:
        if hasattr(self, "kv"):
            self.kv.check()
            assert self.kv.num_sequences == len(self.running)

    @invariant()
    def every_sequence_reads_back_its_own_tokens(self) -> None:
        for sequence in self.running:
            self.read(sequence, sequence.pages.num_tokens, sequence.pages.num_tokens)

    @invariant()
    def what_is_announced_is_not_computed_yet(self) -> None:
        for sequence in self.running:
            done = sequence.pages.chain.keys[: sequence.pages.num_tokens // PAGE]
            assert not sequence.pages.announced & set(done)

    def teardown(self) -> None:
        for sequence in self.running:
            self.kv.release(sequence.pages)
        for _, _, refill in self.refills:
            self.kv.finish_refill(refill, set())
        if hasattr(self, "kv"):
            self.kv.check()
            assert self.kv.num_used_pages() == (0, 0)
            self.kv.clear_cache()
            plan = self.kv.plan
            pages = self.kv.admit(list(range(9)), expect_tokens=9)
            assert pages.num_cached in ((0,) if plan.has_global else (0, 8))
            assert self.kv.global_pool.num_available == self.kv.global_pool.num_pages
            assert self.kv.local_pool.num_available == self.kv.local_pool.num_pages

    # The tensors.

    def take_away(self, block: Block, page: int) -> None:
        self.away[block] = [self.written[block[0], page * PAGE + offset] for offset in range(PAGE)]

    def pool(self, is_local: bool) -> PagePool:
        return self.kv.local_pool if is_local else self.kv.global_pool

    def kinds(self, sequence: Running) -> list[tuple[bool, PageTable]]:
        tables = []
        if self.kv.plan.has_global:
            tables.append((False, sequence.pages.global_table))
        if self.kv.plan.chunk is not None:
            tables.append((True, sequence.pages.local_table))
        return tables

    def admitted(self, ids: list[int], expect: int) -> Running:
        was_coming = self.kv.is_coming(ids)
        used = self.kv.num_used_pages()
        pages = self.kv.admit(ids, expect_tokens=expect, use_cached=self.uses_cache)
        assert all(now >= before for now, before in zip(self.kv.num_used_pages(), used, strict=True))
        assert pages.num_cached <= len(ids) - 1
        assert pages.num_cached % PAGE == 0
        if was_coming and self.uses_cache:
            assert pages.num_cached // PAGE < (len(ids) - 1) // PAGE
        sequence = Running(list(ids), len(ids), pages)
        self.running.append(sequence)
        return sequence

    def write_and_advance(self, sequence: Running, num_tokens: int) -> None:
        pages = sequence.pages
        start, stop = pages.num_tokens, pages.num_tokens + num_tokens
        while len(sequence.ids) < stop:  # "sampled", the same for the same past
            sequence.ids.append(sequence.content(len(sequence.ids) - 1) % 3)
        for is_local, table in self.kinds(sequence):
            for position, slot in zip(range(start, stop), table.slots(start, stop), strict=True):
                assert self.pool(is_local).num_holders(slot // PAGE) == 1
                assert not self.pool(is_local).is_published(slot // PAGE)
                self.written[is_local, slot] = sequence.content(position)
        self.read(sequence, start, stop)
        self.kv.advance(pages, sequence.ids, num_tokens, publish=self.uses_cache)

    def read(self, sequence: Running, first: int, stop: int) -> None:
        """Check what the queries from `first` on and before `stop` see."""
        for is_local, table in self.kinds(sequence):
            start = first // CHUNK * CHUNK if is_local else 0
            if not is_local or self.kv.plan.has_global or start < stop:
                slots = table.slots(start, stop)
                assert [self.written[is_local, slot] for slot in slots] == [
                    sequence.content(position) for position in range(start, stop)
                ]

    def state(self, sequence: Running) -> tuple[object, ...]:
        kv, pages = self.kv, sequence.pages
        tables = (pages.global_table.pages(), pages.local_table.pages())
        return tables, pages.num_reserved, kv.num_used_pages(), kv.num_kept_pages(), kv.num_evicted, kv.num_sequences


@pytest.mark.parametrize("steps", [15, 60])
def test_any_interleaving_of_requests_keeps_pages_and_contents_apart(steps):
    run_state_machine_as_test(
        PagedKvMachine,
        settings=settings(
            max_examples=4800 // steps,
            stateful_step_count=steps,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
