"""Which sequences hold a slot, and which of their tokens the next step computes. No tensors here.

Everything goes by rank: priority first, then the tenant's turn, then arrival. A sequence that finds no page takes those
of the last in rank; one that is the last itself waits a step. So the first in rank always gets on, and every sequence
becomes the first in rank at last.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from router.context_shards.shards import ContextShards
from router.even_share import EvenShare
from router.kv_cache.layout import CacheLayout
from router.limits import EngineLimits
from router.paging.chunks import chunk_start
from router.paging.paged_kv import PagedKv
from router.sequence import Sequence
from router.step_budget import StepBudget
from router.turns import Rank, next_turn

_MOST_LOGITS = 512
"""Tokens of a step that one sequence may want logits of: a row has 0.8 MB with a vocabulary of 200,000."""

BringBack = Callable[[Sequence], bool]
"""Begins to put what a sequence begins with back into the cache, if that is elsewhere, and tells whether to wait."""


@dataclass(frozen=True, slots=True)
class Work:
    """The next tokens of one sequence to compute."""

    sequence: Sequence
    num_tokens: int


class Scheduler:
    """Shares slots, pages and steps out.

    Args:
        limits: of the engine.
        layout: of the cache.
        kv: the cache's books.
        budget: how many prompt tokens a step may take.
        bring_back: called once for a sequence that could get a slot now.
        shards: where keys and values of global layers are, if not in the cache.
    """

    def __init__(
        self,
        limits: EngineLimits,
        layout: CacheLayout,
        kv: PagedKv,
        budget: StepBudget,
        *,
        bring_back: BringBack = lambda sequence: False,
        shards: ContextShards | None = None,
    ) -> None:
        self._limits = limits
        self._layout = layout
        self._kv = kv
        self._budget = budget
        self._bring_back = bring_back
        self._shards = shards
        self._even_share = EvenShare()
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self.num_preemptions = 0
        self.num_prompt_tokens = 0
        """Prompt tokens of the sequences that got a slot."""
        self.num_cached_tokens = 0
        """Of them, those the prefix cache had."""
        self.num_prompts = 0
        """Sequences that the last step's budget of prompt tokens was for."""

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Return the sequences that hold a slot, first in rank first."""
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        """Return the sequences without a slot, in the order they will get one."""
        return tuple(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence."""
        waiting = ((each.rank, each.request.tenant) for each in self._waiting)
        started = (each.rank for each in self._running)
        sequence.turn = next_turn(sequence.request.priority, sequence.request.tenant, waiting, started)
        self._queue(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and give its pages back."""
        if sequence in self._running:
            self._running.remove(sequence)
            self._free(sequence)
        else:
            self._waiting.remove(sequence)

    def preempt_last(self) -> Sequence:
        """Make the last in rank of those that run wait again; return it."""
        last = self._running[-1]
        self._preempt(last)
        return last

    def restart_chunk(self, sequence: Sequence) -> None:
        """Take the pages of a running sequence on context shards: it computes its current chunk anew."""
        self._free(sequence)
        self._begin_chunk(sequence)
        _forget_reports(sequence)

    def admit(self) -> None:
        """Give waiting sequences slots, as long as there are pages for all they have to compute.

        One whose prompt begins like another's that is being computed waits for that, and lets others pass; so does one
        whose pages are on their way back into the cache. A sequence
        of better priority takes the slot or the pages of the last in rank, if that is enough for it to start.
        """
        index = 0
        while index < len(self._waiting):
            sequence = self._waiting[index]
            stays = [other for other in self._running if other.request.priority <= sequence.request.priority]
            if len(stays) >= self._limits.slots:
                return  # nor does anybody behind it find a slot: so a full engine costs nothing to look at
            if sequence.waits_for_pages or self._waits_for_prefix(sequence, stays):
                index += 1
            elif self._can_start(sequence, self._running):
                if sequence.restore is None and self._shares_prefix(sequence) and self._bring_back(sequence):
                    index += 1
                    continue
                self._start(sequence)
                del self._waiting[index]
            elif len(stays) < len(self._running) and self._can_start(sequence, stays):
                self._preempt(self._running[-1])
            else:
                return

    def next_step(self) -> list[Work]:
        """Return the step's work: a token of every sequence that generates and has its turn, then prompts.

        Prompts have a budget of their own.
        """
        work: list[Work] = []
        sound = [sequence for sequence in self._running if not sequence.is_broken]
        generating = [sequence for sequence in sound if not sequence.is_prefilling]
        prefilling = [sequence for sequence in sound if sequence.is_prefilling]
        # On context shards a sequence may have no place for its next token: others must not wait for its turn to end.
        takes_turns = self._shards is None
        chosen = self._even_share.choose(generating, prefilling, self._waiting) if takes_turns else generating
        for sequence in chosen:
            self._add(sequence, 1, work)
        if not work:  # nor must they where it finds no page
            for sequence in generating:
                if sequence not in chosen:
                    self._add(sequence, 1, work)
        # A burst of prompts may stretch the steps of those that are no more urgent, and of nobody else.
        most = min((sequence.request.priority for sequence in generating), default=0)
        self.num_prompts = sum(sequence.request.priority <= most for sequence in prefilling)
        budget = min(self._budget.prompt_tokens(len(work), self.num_prompts), self._limits.step_tokens - len(work))
        for sequence, num_tokens in _share_out(prefilling, budget):
            self._add(sequence, num_tokens, work)
        return work

    def _waits_for_prefix(self, sequence: Sequence, stays: SequenceOf[Sequence]) -> bool:
        """Tell whether one that is no worse in priority computes what this sequence's prompt begins with.

        Args:
            sequence: without a slot.
            stays: those that run and are no worse in priority. Others may be slow, for its sake even.
        """
        if not self._shares_prefix(sequence) or not self._kv.is_coming(sequence.ids, chain=sequence.chain):
            return False
        if len(stays) == len(self._running):
            return True
        announced = (other.pages.announced for other in stays if other.pages is not None)
        return any(not keys.isdisjoint(sequence.chain.keys) for keys in announced)

    def _can_start(self, sequence: Sequence, running: SequenceOf[Sequence]) -> bool:
        """Tell whether there is a slot, and pages for what this sequence and those that run have yet to compute.

        Args:
            sequence: without a slot.
            running: the first of those that run. The others count as if they gave back what they hold; what several
                hold is counted for each, so that the answer may be too good.
        """
        if len(running) >= self._limits.slots or not self._has_room_on_shards(sequence):
            return False
        own = self._kv.num_wanted(sequence.ids, use_cached=self._shares_prefix(sequence), chain=sequence.chain)
        wanted = [own, *map(self._pages_to_come, running)]
        given = [_held(other) for other in self._running[len(running) :]]
        return (
            sum(num_global for num_global, _ in wanted)
            <= self._kv.global_pool.num_available + sum(num_global for num_global, _ in given)
        ) and (
            sum(num_local for _, num_local in wanted)
            <= self._kv.local_pool.num_available + sum(num_local for _, num_local in given)
        )

    def _pages_to_come(self, sequence: Sequence) -> tuple[int, int]:
        """Return the (global, local) pages that a running sequence still needs for the tokens it has."""
        pages, layout = sequence.pages, self._layout
        assert pages is not None
        num_pages = -(-len(sequence.ids) // layout.page_tokens)
        num_global = num_pages if self._kv.plan.has_global else 0
        num_local = min(num_pages - pages.local_table.first, layout.chunk // layout.page_tokens) if layout.chunk else 0
        held_global, held_local = _held(sequence)
        return max(num_global - held_global, 0), max(num_local - held_local, 0)

    def _has_room_on_shards(self, sequence: Sequence) -> bool:
        if self._shards is None or sequence.segments is not None or self._shards.can_promise(sequence.most_tokens):
            return True
        self._shards.refresh()
        return False

    def _start(self, sequence: Sequence) -> None:
        if self._shards is not None and sequence.segments is None:
            sequence.segments = self._shards.promise(sequence.most_tokens)
        if sequence.segments is not None and sequence.segments.num_tokens:
            self._begin_chunk(sequence)
        else:
            sequence.pages = self._kv.admit(
                sequence.ids,
                expect_tokens=sequence.most_tokens,
                use_cached=self._shares_prefix(sequence),
                chain=sequence.chain,
            )
        assert sequence.pages is not None
        if sequence.num_cached is None:
            sequence.num_cached = sequence.pages.num_cached
            self.num_prompt_tokens += len(sequence.request.prompt_ids)
            self.num_cached_tokens += sequence.num_cached
        _forget_reports(sequence)
        sequence.restore = None
        insort(self._running, sequence, key=_rank)

    def _begin_chunk(self, sequence: Sequence) -> None:
        """Have a sequence go on where its current chunk begins: everything before is still on the shards."""
        assert sequence.segments is not None
        sequence.pages = self._kv.begin_at(chunk_start(sequence.segments.num_tokens, self._layout.chunk))

    def _shares_prefix(self, sequence: Sequence) -> bool:
        return self._limits.prefix_cache and not sequence.wants_prompt_logits

    def _add(self, sequence: Sequence, num_tokens: int, work: list[Work]) -> None:
        """Hold pages for a sequence's next tokens and add them to the step, or fewer of them, or none."""
        if sequence.pages is None:
            return  # it made room for another a moment ago
        if sequence.wants_prompt_logits:
            num_tokens = min(num_tokens, _MOST_LOGITS)
        num_tokens = self._within_chunk(sequence, num_tokens)
        while num_tokens > self._layout.page_tokens and not self._kv.can_grow(sequence.pages, num_tokens):
            num_tokens //= 2
        while not self._kv.can_grow(sequence.pages, num_tokens):
            last = self._running[-1]
            if last.rank <= sequence.rank:
                return
            work[:] = [item for item in work if item.sequence is not last]
            self._preempt(last)
        self._kv.grow(sequence.pages, num_tokens)
        work.append(Work(sequence, num_tokens))

    def _preempt(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._free(sequence)
        self.num_preemptions += 1
        self._queue(sequence)

    def _queue(self, sequence: Sequence) -> None:
        insort(self._waiting, sequence, key=_rank)

    def _free(self, sequence: Sequence) -> None:
        if sequence.pages is not None:
            self._kv.release(sequence.pages)
            sequence.pages = None

    def _within_chunk(self, sequence: Sequence, num_tokens: int) -> int:
        """Cut a step at the end of a chunk: a sequence then never holds more local pages than one chunk has.

        Chunks shorter than a step, as small models have, may be crossed while there are pages for it.
        """
        chunk = self._layout.chunk
        if chunk is None:
            return num_tokens
        assert sequence.pages is not None
        if chunk < self._limits.step_tokens and self._kv.can_grow(sequence.pages, num_tokens):
            return num_tokens
        return min(num_tokens, chunk - sequence.num_computed % chunk)


def _forget_reports(sequence: Sequence) -> None:
    """Forget what was reported on prompt tokens that are computed again: what is computed reports on the next one."""
    if not sequence.prompt_is_done:
        del sequence.prompt_logprobs[sequence.num_computed + bool(sequence.num_computed) :]


def _held(sequence: Sequence) -> tuple[int, int]:
    """Return the (global, local) pages of a running sequence."""
    assert sequence.pages is not None
    return sequence.pages.global_table.num_held, sequence.pages.local_table.num_held


def _rank(sequence: Sequence) -> Rank:
    return sequence.rank


def _share_out(prefilling: list[Sequence], budget: int) -> Iterator[tuple[Sequence, int]]:
    """Yield sequences with the tokens each may compute.

    Half of the budget is for the first in rank, so that it gets on whatever else comes. The rest goes by priority, and
    then to those that have least to do, so that a short prompt does not wait for a long one; what they leave is for the
    first again.
    """
    if not prefilling or budget <= 0:
        return
    first, others = (
        prefilling[0],
        sorted(prefilling[1:], key=lambda other: (other.request.priority, other.num_uncomputed)),
    )
    left = budget - min(first.num_uncomputed, -(-budget // 2))
    shares: list[tuple[Sequence, int]] = []
    for sequence in others:
        share = min(sequence.num_uncomputed, left)
        left -= share
        if share:
            shares.append((sequence, share))
    taken = sum(share for _, share in shares)
    yield first, min(first.num_uncomputed, budget - taken)
    yield from shares
