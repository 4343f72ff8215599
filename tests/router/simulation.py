"""An engine without a model: real scheduling and paging over slots that remember what was written to them."""

from __future__ import annotations

from dataclasses import replace

from router.kv_cache.layout import CacheLayout
from router.kv_tiers.tiers import Restore
from router.limits import EngineLimits
from router.paging.blocks import BlockChain
from router.paging.page_pool import OutOfPages
from router.paging.paged_kv import PagedKv, PagingPlan
from router.paging.refill import Block
from router.request import GenerationRequest
from router.sampling import SamplingState
from router.scheduler import Scheduler, Work
from router.sequence import Sequence
from router.step_budget import StepBudget
from tests.tiny import TINY

PAGE_TOKENS = 4


class Simulation:
    """Takes requests, schedules steps and pretends to compute them; the tokens follow from those before them.

    Args:
        num_global: pages for global layers.
        num_local: pages for local layers.
        chunk: attention chunk.
        restore_steps: steps after which evicted pages that are wanted are back; None: they are lost.
        loses: whether every third page is lost on the way.
        limits: of the engine.
    """

    def __init__(
        self,
        *,
        num_global: int = 64,
        num_local: int = 64,
        chunk: int | None = 8,
        restore_steps: int | None = None,
        loses: bool = False,
        **limits,
    ) -> None:
        self.layout = CacheLayout(replace(TINY, attention_chunk=chunk), "float32", PAGE_TOKENS)
        plan = PagingPlan(PAGE_TOKENS, self.layout.chunk, True, num_global, num_local)
        self.limits = EngineLimits(**{"context_length": 256, "kv_bytes": 0, "slots": 4, "step_tokens": 16} | limits)
        self.longest = min(self.layout.longest_sequence(plan), 256)
        self.kv = PagedKv(plan)
        self.budget = StepBudget(step_tokens=self.limits.step_tokens, stretch=2.0, least_tokens=PAGE_TOKENS)
        self.scheduler = Scheduler(self.limits, self.layout, self.kv, self.budget, bring_back=self._bring_back)
        self.finished: list[Sequence] = []
        self.preempted: list[Sequence] = []
        self.work: list[Work] = []
        self.num_computed = 0
        self.num_restored = 0
        self._restore_steps = restore_steps
        self._loses = loses
        self._restores: list[tuple[int, Restore]] = []
        self._num_requests = 0
        self._content: dict[tuple[bool, int], tuple[int, ...]] = {}
        self._away: dict[Block, list[tuple[int, ...]]] = {}
        self.kv.on_evict = self._take_away

    @property
    def is_restoring(self) -> bool:
        return bool(self._restores)

    def add(self, prompt, max_tokens: int = 1, priority: int = 0, **fields) -> Sequence:
        request = GenerationRequest(
            request_id=str(self._num_requests),
            prompt_ids=tuple(prompt),
            max_tokens=max_tokens,
            priority=priority,
            **fields,
        )
        sequence = Sequence(
            request=request,
            receiver=lambda event: None,
            sampling=SamplingState(request),
            deadline=None,
            arrival=self._num_requests,
            chain=BlockChain(PAGE_TOKENS),
        )
        self._num_requests += 1
        self.scheduler.add(sequence)
        return sequence

    def cancel(self, sequence: Sequence) -> None:
        if sequence in self.scheduler.running or sequence in self.scheduler.waiting:
            self.scheduler.remove(sequence)

    def step(self) -> dict[Sequence, int]:
        """Run a step; return the tokens computed of each sequence."""
        self._settle()
        ran = self.scheduler.running
        self.scheduler.admit()
        self.work = self.scheduler.next_step()
        self.preempted += [sequence for sequence in self.scheduler.waiting if sequence in ran]
        num_generating = sum(not item.sequence.is_prefilling for item in self.work)
        for item in self.work:
            self._compute(item)
        num_tokens = sum(item.num_tokens for item in self.work)
        self.num_computed += num_tokens
        if num_tokens:
            num_prompt = num_tokens - num_generating
            self.budget.observe(
                num_generating=num_generating,
                num_prompts=1,
                num_prompt=num_prompt,
                seconds=1 + num_prompt * 0.01,
            )
        return {item.sequence: item.num_tokens for item in self.work}

    def run(self, most_steps: int = 10_000) -> None:
        """Run until nothing is left to do."""
        while self.scheduler.running or self.scheduler.waiting:
            most_steps -= 1
            assert most_steps, f"{len(self.scheduler.running)} run and {len(self.scheduler.waiting)} wait for ever"
            self.step()
            self.kv.check()

    def _compute(self, item: Work) -> None:
        sequence, start = item.sequence, item.sequence.num_computed
        pages, ids = sequence.pages, sequence.ids
        chunk = self.layout.chunk
        for position in range(start, start + item.num_tokens):
            self._check_seen(sequence, position)
            self._content[False, pages.global_table.slot(position)] = tuple(ids[: position + 1])
            if chunk:
                self._content[True, pages.local_table.slot(position)] = tuple(ids[: position + 1])
        self.kv.advance(pages, ids, item.num_tokens)
        if not sequence.num_uncomputed:
            sequence.prompt_is_done = True
            ids.append((sum(ids) * 31 + len(ids)) % 90)
            if sequence.num_output == sequence.request.max_tokens:
                self.scheduler.remove(sequence)
                self.finished.append(sequence)

    def _check_seen(self, sequence: Sequence, position: int) -> None:
        """Check that every layer finds what it needs to compute a position: the first, the last and all of a chunk."""
        pages, chunk = sequence.pages, self.layout.chunk
        first_local = position // chunk * chunk if chunk else position
        for is_local, table, first in ((False, pages.global_table, 0), (True, pages.local_table, first_local)):
            for seen in range(first, position):
                found = self._content.get((is_local, table.slot(seen)))
                assert found == tuple(sequence.ids[: seen + 1]), f"position {seen} is not what was computed there"

    def _take_away(self, block: Block, page: int) -> None:
        if self._restore_steps is not None:
            self._away[block] = [self._content[block[0], slot] for slot in slots_of(page)]

    def _bring_back(self, sequence: Sequence) -> bool:
        gap = self.kv.gap(sequence.ids, sequence.chain, self._away.__contains__)
        if not gap.missing:
            return False
        content = {block: self._away[block] for block in gap.missing}
        try:
            refill = self.kv.refill(gap)
        except OutOfPages:
            return False
        lost = set(gap.missing[::3] if self._loses else ())
        for block, page in refill.pages.items():
            for slot, tokens in zip(slots_of(page), content[block], strict=True):
                self._content[block[0], slot] = () if block in lost else tokens
        sequence.restore = Restore(refill, [], [], 0.0, lost)
        self._restores.append((self._restore_steps or 0, sequence.restore))
        self.num_restored += 1
        return True

    def _settle(self) -> None:
        """Finish what is back."""
        waiting = [(left - 1, restore) for left, restore in self._restores if left]
        for left, restore in self._restores:
            if not left:
                self.kv.finish_refill(restore.refill, restore.lost)
                restore.is_settled = True
        self._restores = waiting


def slots_of(page: int) -> range:
    return range(page * PAGE_TOKENS, (page + 1) * PAGE_TOKENS)


def tokens_alone(prompt, max_tokens: int) -> list[int]:
    """Return what a request generates by itself."""
    alone = Simulation()
    sequence = alone.add(prompt, max_tokens)
    alone.run()
    return sequence.ids
