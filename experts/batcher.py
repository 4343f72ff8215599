"""Decides when which dispatches are computed: at once if nothing else is, else merged with their layer's others.

States, all under one lock:

    idle        nothing computes, nothing waits. Small work that arrives is computed by the thread that brings it:
                handing it to another thread and back costs two thread switches, a fifth of a round trip (docs/wire.md).
    computing   exactly one thread computes. Work that arrives waits in its layer's queue.
    waiting     nothing computes but work waits: the compute thread is on its way. It takes everything that waits for
                the layer whose oldest dispatch came first, as one batch. No timers: a batch is what came meanwhile.

Work that stands back (that of long prompts) waits in queues of its own. It is computed in pieces of about two
milliseconds, and before each piece whatever else waits passes. Others come layer by layer: so after they have passed,
the next piece also waits for about as long as they usually take to come back. What stands back gets at least a ninth of
the time.

Only one thread computes at any time: kernels have the cores for themselves, and counters need no lock of their own.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experts.merge import MergedBatch, merge, split
from experts.pieces import Piece, pieces
from experts.work import Outcome, Work
from protos import errors

_LOG = logging.getLogger(__name__)

_HOLD = 8.0
"""How many times as long as a piece takes the next one may be held back for others."""
_LONGEST_GAP_S = 0.02
"""Seconds within which somebody comes back who is still at work on the same step."""
_GAPS = 2.0
"""How many times the usual time to come back is waited for."""
_REMEMBER = 0.9
"""Share of a past gap in the next estimate."""

RunExperts = Callable[[int, Tensor, Sequence[int], Sequence[int]], Tensor]
"""(layer, hidden [N, D] sorted by expert, expert ids, token counts) -> outputs [N, D]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatcherLimits:
    """How much may wait, and what is computed without waiting."""

    max_waiting_tokens: int = 65_536
    """Most tokens that wait, over all layers; at least 1. A dispatch that finds none waiting always may."""
    max_waiting_dispatches: int = 1_024
    """Most dispatches that wait, over all layers; at least 1."""
    retry_after_ms: int = 20
    """What a refused sender is told to wait, in milliseconds."""
    piece_macs: int = 128_000_000
    """Most multiplications of a piece of work that stands back: about two milliseconds of a core; but at least"""
    piece_tokens: int = 32
    """so many tokens: reading a large expert's weights takes as long for one token as for these."""
    inline_macs: int = 64_000_000
    """Largest dispatch computed in the thread that brings it, in multiplications; 0: none. This many take about a
    millisecond of a core. Larger ones would keep their stream from being read for longer, and gain nothing: next to
    their computing a thread switch is small."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BatcherTimes:
    """Sums over the dispatches computed since the start."""

    dispatches: int = 0
    """How many."""
    queue_s: float = 0.0
    """Seconds from arrival to the start of computing."""
    compute_s: float = 0.0
    """Seconds computing the batch each was part of."""
    busy_s: float = 0.0
    """Seconds computing, each batch once."""


class Batcher:
    """Computes dispatches, one batch at a time.

    Args:
        run_experts: computes a batch; called by one thread at a time.
        limits: how much may wait.
        macs_per_token: multiplications one token takes.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        run_experts: RunExperts,
        limits: BatcherLimits,
        *,
        macs_per_token: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_experts = run_experts
        self._limits = limits
        self._inline_tokens = limits.inline_macs // macs_per_token
        self._piece_tokens = max(limits.piece_macs // macs_per_token, limits.piece_tokens)
        self._clock = clock
        self._changed = threading.Condition()
        # By layer, the layer whose oldest dispatch came first first:
        self._waiting: dict[int, list[Work]] = {}
        self._standing_back: dict[int, list[Work]] = {}
        self._other_ended_s = float("-inf")
        self._gap_s = 0.0  # from there until somebody comes back
        self._piece_s = 0.0
        self._owes_turn = False  # to work that stands back, since other work came before it the last time
        self._waiting_tokens = 0
        self._waiting_dispatches = 0
        self._computing: Sequence[Work] = ()
        self._is_draining = False
        self._is_closed = False
        self._total_tokens = 0
        self._num_dispatches = 0
        self._queue_s = self._compute_s = self._busy_s = 0.0
        self._thread = threading.Thread(target=self._compute_waiting, name="experts-compute", daemon=True)
        self._thread.start()

    @property
    def queued_tokens(self) -> int:
        """Tokens accepted whose outcome is not known yet."""
        return self._waiting_tokens + sum(work.num_tokens for work in self._computing)

    @property
    def total_tokens(self) -> int:
        """Tokens computed so far."""
        return self._total_tokens

    @property
    def times(self) -> BatcherTimes:
        """How long dispatches waited and computed so far."""
        return BatcherTimes(
            dispatches=self._num_dispatches, queue_s=self._queue_s, compute_s=self._compute_s, busy_s=self._busy_s
        )

    @property
    def is_draining(self) -> bool:
        """Tell whether nothing more is accepted."""
        return self._is_draining

    @property
    def num_unfinished(self) -> int:
        """Dispatches accepted whose outcome is not known yet."""
        return self._waiting_dispatches + len(self._computing)

    def now(self) -> float:
        """Return the time on the clock that `Work` is stamped with."""
        return self._clock()

    def submit(self, work: Work) -> Outcome | None:
        """Compute work now, in this thread, or accept it to be computed later.

        Returns:
            The outcome, or None if the work waits: then `work.deliver` gets it, exactly once.

        Raises:
            Overloaded: as much waits as may.
            Draining: nothing more is accepted.
        """
        with self._changed:
            if self._is_draining:
                raise errors.Draining("expected a replica that takes work, found one that drains: try another holder")
            if not work.stands_back:
                self._observe_gap()
            is_idle = not self._computing and not self._waiting and not self._standing_back
            if not is_idle or work.num_tokens > self._inline_tokens:
                self._enqueue(work)
                return None
            self._computing = (work,)
        (outcome,) = self._compute((work,))
        self._finish((work,))
        return outcome

    def drain(self, timeout_s: float) -> int:
        """Accept nothing more and wait for what was accepted; return the dispatches left when time is up."""
        with self._changed:
            self._is_draining = True
            self._changed.wait_for(lambda: not self.num_unfinished, timeout_s)
            return self.num_unfinished

    def close(self) -> None:
        """Fail what waits and end the compute thread. Idempotent; returns when it has ended."""
        with self._changed:
            self._is_draining = self._is_closed = True
            queues = (self._waiting, self._standing_back)
            abandoned = [work for queue in queues for works in queue.values() for work in works]
            self._waiting.clear()
            self._standing_back.clear()
            self._waiting_tokens = self._waiting_dispatches = 0
            self._changed.notify_all()
        for work in abandoned:
            work.deliver(Outcome(error=errors.Draining("the replica stopped before computing: try another holder")))
        self._thread.join()

    def _enqueue(self, work: Work) -> None:
        limits = self._limits
        tokens, dispatches = self._waiting_tokens + work.num_tokens, self._waiting_dispatches + 1
        if dispatches > 1 and (tokens > limits.max_waiting_tokens or dispatches > limits.max_waiting_dispatches):
            raise errors.Overloaded(
                f"expected at most {limits.max_waiting_tokens} tokens in {limits.max_waiting_dispatches} dispatches to "
                f"wait, found {tokens} in {dispatches}: send it again later or to another holder",
                retry_after_ms=limits.retry_after_ms,
            )
        queue = self._standing_back if work.stands_back else self._waiting
        queue.setdefault(work.layer, []).append(work)
        self._waiting_tokens, self._waiting_dispatches = tokens, dispatches
        if not self._computing or self._computing[0].stands_back:
            self._changed.notify_all()

    def _observe_gap(self) -> None:
        gap_s = self._clock() - self._other_ended_s
        if gap_s <= _LONGEST_GAP_S:
            self._gap_s = _REMEMBER * self._gap_s + (1 - _REMEMBER) * gap_s if self._gap_s else gap_s

    def _compute_waiting(self) -> None:
        """Compute what waits until closed: the compute thread's life."""
        while self._compute_layer():
            pass

    def _compute_layer(self) -> bool:
        """Wait for work and compute all of one layer; tell whether there was some, as there is until closed.

        A function of its own: what it names goes with it, and does not keep memory that a router shares until there is
        more work.
        """
        works = self._take_layer()
        if not works:
            return False
        for work, outcome in zip(works, self._compute(works), strict=True):
            work.deliver(outcome)
        self._finish(works)
        return True

    def _take_layer(self) -> Sequence[Work]:
        """Wait for work and take all of one layer; nothing once closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closed or ((self._waiting or self._standing_back) and not self._computing)
            )
            if self._is_closed:
                return ()
            takes_other = self._waiting and not (self._owes_turn and self._standing_back)
            self._owes_turn = bool(takes_other)
            self._computing = self._pop_layer(self._waiting if takes_other else self._standing_back)
            return self._computing

    def _pop_layer(self, queue: dict[int, list[Work]]) -> list[Work]:
        works = queue.pop(next(iter(queue)))
        self._waiting_tokens -= sum(work.num_tokens for work in works)
        self._waiting_dispatches -= len(works)
        return works

    def _let_pass(self) -> None:
        """Compute what others bring before the next piece, and wait a moment for more of it while they are at work."""
        until_s = self._clock() + _HOLD * self._piece_s
        while True:
            with self._changed:
                back_s = min(self._other_ended_s + _GAPS * self._gap_s, until_s)
                self._changed.wait_for(lambda: self._waiting or self._is_closed, max(back_s - self._clock(), 0.0))
                if self._is_closed or not self._waiting:
                    return
                standing_back, works = self._computing, self._pop_layer(self._waiting)
                self._computing = (*standing_back, *works)
            for work, outcome in zip(works, self._compute(works), strict=True):
                work.deliver(outcome)
            with self._changed:
                self._total_tokens += sum(work.num_tokens for work in works)
                self._computing = standing_back
                self._other_ended_s = self._clock()
            if self._clock() >= until_s:
                return

    def _compute(self, works: Sequence[Work]) -> list[Outcome]:
        """Compute dispatches of one layer as one batch, those that are late left out."""
        started_s = self._clock()
        outcomes = {work: _late() for work in works if _is_late(work, started_s)}
        batch = [work for work in works if work not in outcomes]
        if batch:
            outcomes.update(zip(batch, self._run(batch, started_s), strict=True))
        return [outcomes[work] for work in works]

    def _finish(self, works: Sequence[Work]) -> None:
        """Let the next batch compute."""
        with self._changed:
            self._total_tokens += sum(work.num_tokens for work in works)
            self._computing = ()
            if not works[0].stands_back:
                self._other_ended_s = self._clock()
            if self._waiting or self._standing_back or self._is_draining:
                self._changed.notify_all()

    def _run(self, works: Sequence[Work], started_s: float) -> list[Outcome]:
        try:
            batch = merge(works)
            if works[0].stands_back:
                outputs_ND, passed_s = self._run_in_pieces(works[0].layer, batch)
            else:
                outputs_ND, passed_s = self._run_batch(works[0].layer, batch), 0.0
            parts = split(batch, outputs_ND)
        except errors.ServingError as error:  # an expert was released after the dispatch was accepted
            return [Outcome(error=error) for _ in works]
        except Exception as error:  # noqa: BLE001 a kernel's bug fails the batch that met it, not the replica
            _LOG.exception("computing layer %d failed for %d dispatches", works[0].layer, len(works))
            message = f"computing layer {works[0].layer} failed: {type(error).__name__}: {error}"
            return [Outcome(error=errors.InternalError(message)) for _ in works]
        seconds = self._clock() - started_s - passed_s
        self._busy_s += seconds
        self._compute_s += seconds * len(works)
        for work in works:
            self._queue_s += started_s - work.arrived_s
        self._num_dispatches += len(works)
        compute_us = int(seconds * 1e6)
        return [
            Outcome(outputs_ND=part_ND, queue_us=int((started_s - work.arrived_s) * 1e6), compute_us=compute_us)
            for work, part_ND in zip(works, parts, strict=True)
        ]

    def _run_batch(self, layer: int, batch: MergedBatch | Piece) -> Tensor:
        outputs_ND = self._run_experts(layer, batch.hidden_ND, batch.expert_ids, batch.token_counts)
        _check_outputs(batch.hidden_ND, outputs_ND)
        return outputs_ND

    def _run_in_pieces(self, layer: int, batch: MergedBatch) -> tuple[Tensor, float]:
        """Return a batch's outputs, and the seconds that it stood back for others."""
        outputs: list[Tensor] = []
        passed_s = 0.0
        for piece in pieces(batch, self._piece_tokens):
            began_s = self._clock()
            self._let_pass()
            if self._is_closed:
                raise errors.Draining("expected to compute a whole batch, found the replica closed: try another holder")
            passed_s += self._clock() - began_s
            began_s = self._clock()
            outputs.append(self._run_batch(layer, piece))
            self._piece_s = self._clock() - began_s
        return (torch.cat(outputs) if len(outputs) > 1 else outputs[0]), passed_s


def _is_late(work: Work, now_s: float) -> bool:
    return work.deadline_s is not None and now_s >= work.deadline_s


def _check_outputs(hidden_ND: Tensor, outputs_ND: Tensor) -> None:
    """Check what a kernel promises, here where a breach is still one batch's failure."""
    if outputs_ND.shape != hidden_ND.shape or outputs_ND.dtype != hidden_ND.dtype:
        raise ValueError(
            f"expected outputs {list(hidden_ND.shape)} of {hidden_ND.dtype}, found {list(outputs_ND.shape)} of "
            f"{outputs_ND.dtype}"
        )


def _late() -> Outcome:
    return Outcome(
        error=errors.DeadlineExceeded(
            "expected to start computing before the dispatch's deadline, found it passed: give it more time or add "
            "replicas of its experts"
        )
    )
