"""The engine: a thread that takes requests, runs steps and emits tokens, for many sequences at once."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import replace
from itertools import count

from torch import Tensor

from models.llama4.decoder import Decoder
from protos import errors
from router.acceptance import check_limits, check_request
from router.batch import Batch, Span, split
from router.context_shards.repair import Repairs
from router.context_shards.segments import SequenceSegments
from router.context_shards.shards import ContextShards, ShardFailed
from router.decode_inputs import DecodeCache
from router.forward import Forward
from router.kv_cache.codec import dtype_name
from router.kv_cache.storage import KvStorage
from router.kv_tiers.tiers import KvTiers
from router.limits import EngineLimits
from router.next_tokens import NextTokens
from router.overlap import Overlap
from router.paging.blocks import BlockChain
from router.paging.paged_kv import PagedKv
from router.request import Emit, Ended, EngineLoad, GenerationRequest, PageCounts
from router.resident import record_steps, resident_experts
from router.sampling import SamplingState
from router.scheduler import Scheduler, Work
from router.sequence import Sequence
from router.step_budget import StepBudget
from router.trace import SequenceTrace, traced_step
from router.transport.base import WAIT_STEP_S, StepAbandoned, Transport
from router.warm_up import warm_up

_LOG = logging.getLogger(__name__)
_PAUSE_S = 0.02
_TELL_BEFORE_S = 3 * WAIT_STEP_S
"""Seconds before its deadline that a sequence which waits for a missing expert is told so: later, the front door's own
deadline would come first."""


class Engine:
    """Generates for many requests with one model.

    Every public member may be used from any thread. Everything else happens in the step loop's own thread, one step
    after the other:

        take what was submitted and cancelled -> end what is late -> admit -> compute -> sample -> emit

    The first two happen also while a step waits for expert replicas, every WAIT_STEP_S seconds, so that a sequence
    leaves in time whatever its neighbours wait for; a step that nobody is left of is given up.

    Every accepted request ends with exactly one `Ended`, unless it was cancelled or its receiver raised.

    Args:
        decoder: the router's share of the model.
        transport: the way to the experts; the engine does not close it.
        limits: what to take on.
        shards: the way to context shards, given if and only if `limits.on_shards`; the engine does not close it.
        model: names the weights and how they are computed: pages that another model left on disk are not used.
    """

    def __init__(
        self,
        decoder: Decoder,
        transport: Transport,
        limits: EngineLimits,
        shards: ContextShards | None = None,
        *,
        model: str = "",
    ) -> None:
        assert limits.on_shards == (shards is not None), "limits.on_shards and shards go together"
        if shards is not None:
            # What local layers have computed is of no use without what global ones have of the same tokens.
            limits = replace(limits, prefix_cache=False)
        self.config = decoder.config
        self.limits = limits
        self.layout = limits.layout(decoder.config, dtype_name(decoder.dtype))
        check_limits(limits, self.layout, decoder.dtype)
        self._device = decoder.device
        self._transport = transport
        plan = limits.paging(self.layout)
        self._longest = min(self.layout.longest_sequence(plan), limits.context_length)
        self._kv = PagedKv(plan)
        self._num_signs = 0
        self._storage = KvStorage(self.layout, plan, decoder.dtype, decoder.device)
        resident = resident_experts(decoder, transport)
        self._forward = Forward(decoder, transport, shards, resident, probe=lambda *layer: self._give_sign())
        cache = DecodeCache(self._storage, self.layout, plan, limits.slots, self._longest)
        self.graphs = record_steps(decoder, transport, resident, cache, self._give_sign)
        """Steps of lone tokens that are recorded, where attention is a GPU's."""
        if self.graphs is not None and decoder.device.type == "cuda":
            self._warm_up()
        self._shards = shards
        self._left_on_shards: list[SequenceSegments] = []
        self._repairs = Repairs(self._kv, limits.step_tokens) if shards is not None else None
        self._budget = StepBudget(
            step_tokens=limits.step_tokens,
            stretch=limits.prefill_stretch,
            least_tokens=max(self.layout.page_tokens // 4, 1),  # what a prompt gets beside streams in any case
        )
        self._overlap = Overlap()
        self._scheduler = Scheduler(
            limits,
            self.layout,
            self._kv,
            self._budget,
            bring_back=self._bring_back,
            shards=shards,
        )
        self._next_tokens = NextTokens(self._kv, self._end, publishes=limits.prefix_cache)
        self._arrivals = count()
        self._work: list[Work] = []
        self._is_working = False
        self._may_trace = False  # as of the first traced sequence: until then, steps do not even look for one
        # Shared between threads, under the condition's lock:
        self._changed = threading.Condition()
        self._submitted: deque[Sequence] = deque()
        self._cancelled: set[str] = set()
        self._num_accepted = 0
        self._stopping = False
        self._tiers = KvTiers(
            self._kv,
            self._storage,
            self.layout,
            host_bytes=limits.host_kv_bytes if limits.prefix_cache else 0,
            disk_bytes=limits.disk_kv_bytes if limits.prefix_cache else 0,
            folder=limits.kv_folder,
            model=f"{model} {decoder.config!r} {decoder.dtype}",
            wake=self._wake,
        )
        self._load = self._measure_load()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    @property
    def is_alive(self) -> bool:
        """Tell whether the step loop runs."""
        return self._thread.is_alive()

    @property
    def is_working(self) -> bool:
        """Tell whether the loop has something to do."""
        return self._is_working

    @property
    def num_signs(self) -> int:
        """Return a number that grows with every step, every layer and every look up from a wait; see StepWatch."""
        return self._num_signs

    def start(self) -> None:
        """Start the step loop."""
        self._thread.start()

    def stop(self) -> None:
        """End every sequence with ReplicaUnavailable and stop the loop. Idempotent.

        Blocks while a step computes, not while one waits for replicas.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        else:
            self._end_all()
        self._tiers.close()

    def submit(self, request: GenerationRequest, emit: Emit, trace: SequenceTrace | None = None) -> None:
        """Accept a request.

        Args:
            request: ids in, limits and sampling.
            emit: receives every event, in order, from the step loop's thread; it must not block or raise.
            trace: is told of its steps, in that thread; None: it is not traced.

        Raises:
            InvalidRequest: a field is wrong.
            ContextTooLong: prompt and max_tokens exceed the context, or the whole cache.
            Overloaded: the queue is full.
            ReplicaUnavailable: the engine is stopping.
        """
        check_request(request, self.config, self._longest)
        sequence = Sequence(
            request=request,
            receiver=emit,
            sampling=SamplingState(request, num_replayed=request.num_replayed),
            deadline=None if request.timeout_s is None else time.monotonic() + request.timeout_s,
            arrival=next(self._arrivals),
            chain=BlockChain(self.layout.page_tokens),
            trace=trace,
        )
        most = self.limits.slots + self.limits.max_waiting
        with self._changed:
            if self._stopping:
                raise errors.ReplicaUnavailable("expected a running router, found one that is stopping: try another")
            if self._num_accepted >= most:
                raise errors.Overloaded(
                    f"expected fewer than {most} unfinished requests, {self.limits.slots} of them running, found "
                    f"{self._num_accepted}: try again later",
                    retry_after_ms=1000,
                )
            self._num_accepted += 1
            self._may_trace |= trace is not None
            self._submitted.append(sequence)
            _LOG.debug("sequence accepted", extra=sequence.log_fields(prompt_tokens=len(request.prompt_ids)))
            self._changed.notify()

    def cancel(self, request_id: str) -> None:
        """Drop the sequences submitted under a name so far and free what they hold. Idempotent.

        They leave before the next step, or within WAIT_STEP_S seconds if a step waits for replicas; until then a
        token may still be emitted.
        """
        with self._changed:
            if self._stopping:
                return
            kept = [sequence for sequence in self._submitted if sequence.request.request_id != request_id]
            self._num_accepted -= len(self._submitted) - len(kept)
            self._submitted = deque(kept)
            self._cancelled.add(request_id)
            self._changed.notify()

    def load(self) -> EngineLoad:
        """Return how busy the engine is: as of the step under way, with what was submitted since."""
        with self._changed:
            load = self._load
            queued_tokens = load.queued_prompt_tokens + sum(len(s.request.prompt_ids) for s in self._submitted)
            return replace(load, waiting=max(self._num_accepted - load.running, 0), queued_prompt_tokens=queued_tokens)

    def _warm_up(self) -> None:
        most_tokens = min(self.limits.step_tokens, self._longest)
        try:
            warm_up(self._forward, self._kv, self._storage, self.layout, most_tokens)
        except errors.ServingError as error:  # experts that have gone come back; then kernels are compiled by and by
            _LOG.warning("could not compute prompts to warm up: %s", error.message)

    def _run(self) -> None:
        if self.limits.idle_priority and hasattr(os, "SCHED_IDLE"):
            # Of this thread, and of those it starts to compute with. Lower than any niceness: Ray's processes have 15.
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
        self._transport.on_wait = self._attend_wait
        if self._shards is not None:
            self._shards.on_wait = self._attend_wait
        try:
            while self._wait_for_work():
                self._give_sign()
                self._take_orders()
                self._tiers.settle()
                self._scheduler.admit()
                self._publish_load()
                has_repaired = self._repair()
                work = [item for item in self._scheduler.next_step() if self._has_place(item.sequence, item.num_tokens)]
                with traced_step(work, self._transport, self._shards) if self._may_trace else nullcontext():
                    self._step(work)
                self._leave_shards()
                self._publish_load()
                if not (work or has_repaired):
                    self._make_room_on_shards()
                if not (work or has_repaired) and (self._shards is not None or self._tiers.is_busy):
                    self._pause()
        finally:
            # However the loop ends: nobody must wait for a thread that is gone.
            self._transport.on_wait = lambda: None
            self._end_all()
            self._leave_shards()

    def _wait_for_work(self) -> bool:
        """Wait until there is something to do; return False when that is to stop."""
        with self._changed:
            self._is_working = False
            self._changed.wait_for(self._has_work)
            self._is_working = True
            return not self._stopping

    def _give_sign(self) -> None:
        self._num_signs += 1

    def _leave_shards(self) -> None:
        """Drop from context shards what belongs to sequences that have left."""
        while self._left_on_shards:
            assert self._shards is not None
            self._shards.release(self._left_on_shards.pop())

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _pause(self) -> None:
        """Wait a moment for context shards or pages: without them, sequences wait that no step can serve."""
        with self._changed:
            self._changed.wait(_PAUSE_S)

    def _has_work(self) -> bool:
        if self._stopping or self._submitted or self._cancelled or self._tiers.is_busy:
            return True
        return bool(self._scheduler.running or self._scheduler.waiting)

    def _take_orders(self) -> None:
        """Take what was submitted and cancelled, and end what is late."""
        with self._changed:
            submitted, self._submitted = self._submitted, deque()
            cancelled, self._cancelled = self._cancelled, set()
        # In this order: a cancellation is of what was submitted before it.
        self._drop(cancelled)
        for sequence in submitted:
            self._scheduler.add(sequence)
        self._end_late()

    def _attend_wait(self) -> None:
        """Do what cannot wait while a step waits for replicas."""
        self._give_sign()
        self._take_orders()
        if lacking := self._transport.lacking:
            self._end_hopeless([item.sequence for item in self._work], lacking)
        self._publish_load()
        if self._stopping or all(item.sequence.has_left for item in self._work):
            raise StepAbandoned

    def _step(self, work: list[Work]) -> None:
        if not work:
            return
        self._work = work
        try:
            logits_BV, learn = self._compute(work)
            self._next_tokens.advance(work, logits_BV, on_read=learn)
        except StepAbandoned:
            pass  # nobody is left to tell, or everybody is told at the loop's end
        except ShardFailed as failed:
            self._settle(failed)  # then the step is tried again: nothing was counted as computed
        except errors.ServingError as error:
            # Without the traceback: its frames hold the step's tensors and caches, and who keeps the error keeps them.
            self._fail(work, error.with_traceback(None))
        except Exception:  # noqa: BLE001 the loop serves others: a bug in one step must not end them all
            for item in work[1:]:
                _LOG.error("a step failed, this sequence with it", extra=item.sequence.log_fields())
            _LOG.exception("a step failed", extra=work[0].sequence.log_fields())
            self._fail(work, errors.InternalError("the step that computed this request failed: see the router's log"))
        finally:
            self._work = []

    def _has_place(self, sequence: Sequence, num_tokens: int) -> bool:
        """Tell whether context shards have a place for a sequence's next tokens; if not, it waits while it has time."""
        if self._shards is None or sequence.segments is None:
            return True
        try:
            if self._shards.extend(sequence.segments, sequence.num_computed + num_tokens):
                return True
        except errors.NoReplica as error:
            self._end(sequence, Ended(reason="error", error=error))
        else:
            assert self._shards.lacking is not None
            self._end_hopeless([sequence], self._shards.lacking)
        return False

    def _make_room_on_shards(self) -> None:
        """Have the last sequence begin anew where those that run wait for room that only another could give up."""
        if self._shards is None or self._repairs is None or not self._shards.is_at_standstill:
            return
        holding = [sequence for sequence in self._scheduler.waiting if sequence.segments is not None]
        if not holding and len(self._scheduler.running) < 2:
            return
        sequence = holding[-1] if holding else self._scheduler.preempt_last()
        self._repairs.drop(sequence)
        if sequence.segments is not None:
            self._shards.make_room(sequence.segments)  # no step is under way that could write there
            sequence.segments = None

    def _leave_places(self, sequence: Sequence) -> None:
        """Give up what a sequence has on shards, once no step writes there any more."""
        if self._repairs is not None and sequence.segments is not None:
            self._repairs.drop(sequence)
            self._left_on_shards.append(sequence.segments)

    def _repair(self) -> bool:
        """Compute the next tokens again whose keys and values were lost with their shard; tell if there were any."""
        if self._repairs is None:
            return False
        lost = [sequence for sequence in self._scheduler.running if sequence.is_broken]
        broken = [sequence for sequence in lost if self._has_place(sequence, 0)]
        try:
            if (found := self._repairs.next_span(broken)) is not None:
                sequence, span = found
                self._work = [Work(sequence, len(span.ids))]
                self._tiers.save_evicted()
                self._logits([[span]])
                if not sequence.has_left:
                    self._repairs.advance(sequence, span)
                return True
            self._give_pages_to_repairs(broken)
        except ShardFailed as failed:
            self._settle(failed)
        except StepAbandoned:
            pass
        except errors.ServingError as error:
            for sequence in broken:
                self._end(sequence, Ended(reason="error", error=error.with_traceback(None)))
        finally:
            self._work = []
        return False

    def _give_pages_to_repairs(self, broken: list[Sequence]) -> None:
        """Where no repair finds pages for local layers, take those of a sequence that waits for its repair."""
        for sequence in reversed(broken):
            if sequence.pages is not None and sequence.pages.local_table.num_held:
                self._scheduler.restart_chunk(sequence)
                return

    def _settle(self, failed: ShardFailed) -> None:
        assert self._shards is not None
        _LOG.warning("context shard %s", failed)
        self._shards.settle(failed)

    def _compute(self, work: list[Work]) -> tuple[Tensor, Callable[[], None]]:
        """Return the logits of a step, and what learns from how long they took: to be called once they were read."""
        started_s = time.perf_counter()
        num_generating = sum(not item.sequence.is_prefilling for item in work)
        num_prompts, num_tokens = self._scheduler.num_prompts, sum(item.num_tokens for item in work)
        spans, parts = [self._span(item) for item in work], []
        self._tiers.save_evicted()  # before the step writes where it was
        logits_BV = None if self.graphs is None else self.graphs.logits(spans)
        if logits_BV is None:
            # Experts that are here compute when they are asked: there is no wait for another batch to fill.
            parts = split(spans, 1 if self._forward.resident else self._overlap.num_batches(num_tokens))
            logits_BV = self._logits(parts)
        for item in work:
            if item.sequence.segments is not None:
                item.sequence.segments.num_tokens = item.sequence.num_computed + item.num_tokens
        # A GPU has been told what to do, no more.
        ended_s = time.perf_counter() if self._device.type == "cpu" else None

        def learn() -> None:
            seconds = (time.perf_counter() if ended_s is None else ended_s) - started_s
            if parts:  # it was no recorded step
                self._overlap.observe(num_tokens, len(parts), seconds)
            self._budget.observe(
                num_generating=num_generating,
                num_prompts=num_prompts,
                num_prompt=num_tokens - num_generating,
                seconds=seconds,
            )

        return logits_BV, learn

    def _logits(self, parts: list[list[Span]]) -> Tensor:
        look = self._forward.look(self._storage)
        batches = [Batch.of(spans, self.layout, self._device, look) for spans in parts]
        return self._forward(batches, self._storage)

    def _span(self, item: Work) -> Span:
        sequence = item.sequence
        assert sequence.pages is not None
        start = sequence.num_computed
        ids = sequence.ids[start : start + item.num_tokens]
        num_logits = len(ids) if sequence.wants_prompt_logits else 1
        return Span(sequence.pages, start, ids, num_logits, sequence.segments)

    def _bring_back(self, sequence: Sequence) -> bool:
        """Begin to restore what a sequence begins with, if that is away; tell whether to wait for it."""
        sequence.restore = self._tiers.bring_back(sequence.ids, sequence.chain, self._budget.prompt_tokens_per_s)
        return sequence.restore is not None

    def _drop(self, request_ids: set[str]) -> None:
        if not request_ids:
            return
        for sequence in self._scheduler.running + self._scheduler.waiting:
            if sequence.request.request_id in request_ids:
                self._release(sequence)
                _LOG.debug("sequence cancelled", extra=sequence.log_fields())

    def _end_late(self) -> None:
        now = time.monotonic()
        for sequence in self._scheduler.running + self._scheduler.waiting:
            if sequence.is_deaf:
                self._release(sequence)
            elif late := sequence.lateness(now):
                self._end(sequence, Ended(reason="error", error=late))

    def _end_hopeless(self, sequences: Iterable[Sequence], lacking: errors.NoReplica) -> None:
        """End sequences whose time is nearly up with what it was spent on, before somebody else can only say: late."""
        now = time.monotonic()
        for sequence in sequences:
            deadline, timeout_s = sequence.deadline, sequence.request.timeout_s
            if deadline is None or timeout_s is None or now < deadline - min(_TELL_BEFORE_S, timeout_s / 4):
                continue
            error = errors.NoReplica(
                f"expected to finish within {timeout_s:g} s, found no time left to wait: {lacking.message}",
                retry_after_ms=1000,
            )
            self._end(sequence, Ended(reason="error", error=error))

    def _fail(self, work: list[Work], error: errors.ServingError) -> None:
        for item in work:
            self._end(item.sequence, Ended(reason="error", error=error))

    def _end_all(self) -> None:
        stopping = errors.ReplicaUnavailable("the router stopped before the request was finished: send it again")
        with self._changed:
            self._stopping = True
        self._take_orders()
        for sequence in self._scheduler.running + self._scheduler.waiting:
            self._end(sequence, Ended(reason="error", error=stopping))

    def _end(self, sequence: Sequence, event: Ended) -> None:
        """Take a sequence off the engine and emit its end, unless it has left."""
        if not sequence.has_left:
            self._release(sequence)
            reason = event.reason if event.error is None else event.error.reason
            _LOG.debug("sequence ended", extra=sequence.log_fields(finished=reason))
            sequence.emit(event)

    def _release(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        sequence.has_left = True
        self._leave_places(sequence)
        load = self._measure_load()
        with self._changed:
            self._num_accepted -= 1
            self._load = load

    def _publish_load(self) -> None:
        load = self._measure_load()
        with self._changed:
            self._load = load

    def _measure_load(self) -> EngineLoad:
        running, waiting = self._scheduler.running, self._scheduler.waiting
        used, kept, plan = self._kv.num_used_pages(), self._kv.num_kept_pages(), self._kv.plan
        return EngineLoad(
            running=len(running),
            waiting=len(waiting),
            queued_prompt_tokens=sum(s.num_uncomputed for s in (*running, *waiting) if s.is_prefilling),
            kv_used_bytes=self.layout.pages_bytes(*used),
            kv_total_bytes=self.layout.plan_bytes(plan),
            slots=self.limits.slots,
            generated_tokens=self._next_tokens.num_chosen,
            kv_cached_bytes=self.layout.pages_bytes(*kept),
            global_pages=PageCounts(total=plan.num_global_pages, used=used[0], kept=kept[0]),
            local_pages=PageCounts(total=plan.num_local_pages, used=used[1], kept=kept[1]),
            kv_tiers=self._tiers.counts(),
            prompt_tokens=self._scheduler.num_prompt_tokens,
            cached_tokens=self._scheduler.num_cached_tokens,
            preemptions=self._scheduler.num_preemptions,
            repaired_tokens=0 if self._repairs is None else self._repairs.num_tokens,
            context_free_tokens=None if self._shards is None else self._shards.free_tokens,
            context_wanted_tokens=0 if self._shards is None else sum(s.most_tokens for s in (*running, *waiting)),
            prefill_tokens_per_s=self._budget.prompt_tokens_per_s,
        )
