"""A dispatch under way: every share of it is answered by somebody, whoever fails.

    sent --> answered
      |
      |-- late: another holder is asked as well, whoever is first is taken          (answer_times.py)
      |-- failed, damaged, gone: another holder is asked instead
      `-- nobody left: wait for one, as long as patience lasts

A holder that loses dispatches again and again is passed over for a while (ejection.py).
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Collection
from concurrent import futures
from functools import partial
from operator import itemgetter

import torch
from torch import Tensor

from protos import errors
from router.plan import ReplicaShare
from router.spread import Assignment
from router.trace import CallSpan, StepSpan
from router.transport.asked import Asked, Way
from router.transport.attempt import Attempt, Sender
from router.transport.base import WAIT_STEP_S
from router.transport.ejection import EJECT_AFTER
from router.transport.evidence import Evidence
from router.transport.probing import probe
from router.transport.streams import ReplicaStreams
from router.transport.timeouts import DispatchTimeouts
from router.transport.tokens import Tokens, brought_to

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.25
_MOST_BAD_ANSWERS = 3
"""Answers to one dispatch that are wrong, or say that it is: one may be damage on the way, three are our bug."""


class Pending:
    """Implements PendingDispatch over streams.

    Args:
        streams: to the replicas.
        sender: writes.
        evidence: what is known of the replicas; learns from this dispatch.
        timeouts: how long to wait.
        on_wait: see `Transport.on_wait`.
        layer: decoder layer.
        hidden_ND: [N, D] in the plan's order, on any device: the outputs come back to it.
        trace: the step that it belongs to; None: it is not traced.
    """

    def __init__(
        self,
        streams: ReplicaStreams,
        sender: Sender,
        evidence: Evidence,
        timeouts: DispatchTimeouts,
        on_wait: Callable[[], None],
        layer: int,
        hidden_ND: Tensor,
        trace: StepSpan | None = None,
    ) -> None:
        self._streams = streams
        self._sender = sender
        self._evidence = evidence
        self._timeouts = timeouts
        self._on_wait = on_wait
        self._layer = layer
        self._trace = trace
        self._tokens = Tokens(hidden_ND)
        self._give_up_at = time.monotonic() + timeouts.patience_s
        self._sent: list[Attempt] = []
        """Shares that were sent and are not settled, each where it went first."""
        self._asked: Asked | None = None
        """The one of them that is not answered as planned."""
        self.num_neighbours = 0
        """Replicas of this host among those that were sent something."""
        self._failed: set[str] = set()
        self._num_bad_answers = 0
        self._pause_s = _FIRST_PAUSE_S

    def send(self, shares: tuple[ReplicaShare, ...]) -> None:
        """Send shares to their replicas, or to other holders of their experts where a replica has gone."""
        try:
            for share in shares:
                try:
                    self._sent.append(self._send(share))
                except errors.ReplicaUnavailable:
                    self._failed.add(share.replica_id)
                    self._sent += self._other_way(share).attempts
            if self._evidence.ejection.ejected or self._evidence.probes:
                send = partial(self._send, is_traced=False)  # a probe is no part of the step
                probe(self._evidence, self._streams, shares, self._tokens.hidden_ND, send, time.monotonic())
        except BaseException:
            self.give_up()
            raise

    def wait(self) -> Tensor:
        """Return the outputs [N, D], resending what fails until it is answered or patience ends."""
        answered: list[tuple[Attempt, Tensor]] = []
        try:
            while self._sent:
                attempt = self._sent[0]
                rows_nD = self._as_planned(attempt)
                answered += self._settle(attempt) if rows_nD is None else ((attempt, rows_nD),)
                del self._sent[0]
            answered.sort(key=lambda pair: pair[0].share.start)
            return self._joined(answered)
        finally:
            for attempt, _ in answered:
                attempt.let_go()
            self.give_up()

    def give_up(self) -> None:
        """Drop the answers nobody will read."""
        for attempt in self._sent:
            attempt.abandon()
        self._sent.clear()
        if self._asked is not None:
            for way in self._asked.ways:
                way.abandon()
            self._asked = None

    def _joined(self, answered: list[tuple[Attempt, Tensor]]) -> Tensor:
        """Return the rows of all shares as one tensor that lies in no slot, on the device of the tokens."""
        hidden_ND = self._tokens.hidden_ND
        if not answered:
            return hidden_ND
        brought = [brought_to(hidden_ND.device, rows_nD) for _, rows_nD in answered]
        if len(brought) > 1:
            return torch.cat(brought)
        ((attempt, rows_nD),) = answered
        is_in_slot = attempt.slot is not None and brought[0] is rows_nD
        return rows_nD.clone() if is_in_slot else brought[0]

    def _as_planned(self, attempt: Attempt) -> Tensor | None:
        """Return the rows of a share that is answered well and in time; None: it needs a closer look.

        Nearly every share of every layer ends here. So this does little, and nothing that others could do for it.
        """
        evidence, num_tokens = self._evidence, attempt.share.stop - attempt.share.start
        evidence.counts.shares += 1
        evidence.budget.earn()
        wait_s = attempt.sent_at + evidence.times.hedge_after_s(num_tokens) - time.monotonic()
        try:
            result, at_s = attempt.result(min(max(wait_s, 0), WAIT_STEP_S))
            rows_nD = attempt.rows(self._tokens.hidden_ND)
        except (TimeoutError, errors.ServingError):
            return None
        evidence.times.observe(num_tokens, at_s - attempt.sent_at)
        evidence.parts.observe(at_s - attempt.sent_at, result.queue_us, result.compute_us)
        if attempt.span is not None:
            attempt.answered(at_s, result)
        if evidence.ejection.has_records:
            evidence.ejection.won(attempt.replica_id, at_s)
        return rows_nD

    def _settle(self, attempt: Attempt) -> list[tuple[Attempt, Tensor]]:
        """Return what answers a share, after as many tries as it takes."""
        share = attempt.share
        hedge_after_s = self._evidence.times.hedge_after_s(share.stop - share.start)
        asked = self._asked = Asked(share, Way([attempt]), hedge_after_s)
        while True:
            try:
                return self._first_answer(asked)
            except errors.ServingError as error:
                self._ask_again(asked, error)

    def _first_answer(self, asked: Asked) -> list[tuple[Attempt, Tensor]]:
        """Return what answers a share first; raise the last error once no way is left."""
        while True:
            way, index = self._next_done(asked)
            attempt = way.attempts[index]
            try:
                way.rows[index] = self._rows(attempt)
            except errors.ServingError as error:
                self._note_failure(attempt, error)
                way.abandon()
                asked.ways.remove(way)
                if not asked.ways:
                    raise
                continue
            if way.is_answered:
                self._note_answer(asked, way)
                return [(each, rows) for each, rows in zip(way.attempts, way.rows, strict=True) if rows is not None]

    def _next_done(self, asked: Asked) -> tuple[Way, int]:
        """Wait until something came for a share, or until it should have; ask somebody else, too, when it is late."""
        while True:
            waiting = asked.waiting()
            now = time.monotonic()
            due_at = min(way.attempts[index].due_at for way, index in waiting)
            until = min(due_at, asked.hedge_at)
            answers = [way.attempts[index].answer for way, index in waiting]
            futures.wait(answers, min(max(until - now, 0), WAIT_STEP_S), futures.FIRST_COMPLETED)
            now = time.monotonic()
            for way, index in waiting:
                attempt = way.attempts[index]
                if attempt.answer.done() or now >= attempt.due_at:
                    return way, index
            if now >= asked.hedge_at:
                self._hedge(asked, now)
            self._on_wait()

    def _rows(self, attempt: Attempt) -> Tensor:
        """Return an answer's rows, perhaps in its slot, or raise what came instead."""
        if attempt.answer.done():
            return attempt.rows(self._tokens.hidden_ND)
        attempt.stream.reset()
        raise errors.ReplicaUnavailable(
            f"expected replica {attempt.replica_id} to answer layer {self._layer} within "
            f"{attempt.due_at - attempt.sent_at:.3g} s, found no answer: its stream was reset"
        )

    def _hedge(self, asked: Asked, now: float) -> None:
        """Ask other holders as well, if there are any and this does not happen too often."""
        asked.hedge_at = now + self._evidence.times.hedge_after_s(asked.share.stop - asked.share.start)
        if not self._evidence.budget.can_spend:
            return
        tried = self._failed.union(attempt.replica_id for way in asked.ways for attempt in way.attempts)
        way = self._way_elsewhere(asked.share, tried | self._evidence.ejection.ejected)
        if way is None and self._evidence.ejection.ejected:
            way = self._way_elsewhere(asked.share, tried)  # better one under suspicion than nobody
        if way is not None:
            self._evidence.budget.spend()
            self._evidence.counts.hedges += 1
            asked.ways.append(way)

    def _note_answer(self, asked: Asked, winner: Way) -> None:
        """Learn from who answered a share, and drop the other ways."""
        ejection = self._evidence.ejection
        answers = [attempt.result() for attempt in winner.attempts]
        at_s = max(each.at_s for each in answers)
        # From when it was first sent: what the step waited, whoever made it wait.
        self._evidence.times.observe(asked.share.stop - asked.share.start, at_s - asked.sent_at)
        for attempt, each in zip(winner.attempts, answers, strict=True):
            ejection.won(attempt.replica_id, at_s)
            self._evidence.parts.observe(each.at_s - attempt.sent_at, each.result.queue_us, each.result.compute_us)
            attempt.answered(each.at_s, each.result)
        for way in asked.ways:
            if way is winner:
                continue
            for attempt in way.attempts:
                if attempt.sent_at < winner.attempts[0].sent_at and not attempt.answer.done():
                    ejection.lost(attempt.replica_id, at_s)
            way.abandon()
        asked.ways = [winner]

    def _note_failure(self, attempt: Attempt, error: errors.ServingError) -> None:
        """Learn from a failure. That a replica is gone, full or drains says nothing against it once it is back."""
        self._failed.add(attempt.replica_id)
        if attempt.span is not None:
            attempt.span.failed(error)
        if not attempt.answer.done():
            self._evidence.ejection.lost(attempt.replica_id, time.monotonic(), weight=EJECT_AFTER)
        elif _is_bad_answer(error):
            self._num_bad_answers += 1
            self._evidence.ejection.lost(attempt.replica_id, time.monotonic())

    def _ask_again(self, asked: Asked, error: errors.ServingError) -> None:
        """Send a failed share to other holders; raise the error if that cannot help or is too late.

        A replica that finds a dispatch late is no different from one that does not answer: another may be faster.
        """
        if _is_bad_answer(error):
            if self._num_bad_answers >= _MOST_BAD_ANSWERS:
                raise error
        elif not (error.retryable or isinstance(error, errors.DeadlineExceeded)):
            raise error
        way = self._way_elsewhere(asked.share, self._failed | self._evidence.ejection.ejected)
        if way is None:
            # Where nobody else holds the experts, a replica that refuses them is asked in vain for a while.
            self._pause(max(error.retry_after_ms / 1000, self._next_pause()))
            if time.monotonic() >= self._give_up_at:
                raise error
            way = self._other_way(asked.share)
        self._evidence.counts.resends += 1
        asked.ways = [way]
        asked.hedge_at = time.monotonic() + self._evidence.times.hedge_after_s(asked.share.stop - asked.share.start)

    def _other_way(self, share: ReplicaShare) -> Way:
        """Send a share to holders of its experts, those that failed it only where there are no others."""
        avoid = self._failed | self._evidence.ejection.ejected
        while True:
            assignment = self._streams.assign(
                _counts(share), avoid=avoid, give_up_at=self._give_up_at, on_wait=self._on_wait
            )
            try:
                return self._way(share, assignment)
            except errors.ReplicaUnavailable:
                # Connected, and yet it takes nothing: it went just now, or owes too much.
                if time.monotonic() >= self._give_up_at:
                    raise
                self._pause(self._next_pause())

    def _way(self, share: ReplicaShare, assignment: Assignment) -> Way:
        """Send a share as assigned.

        Raises:
            ReplicaUnavailable: one of the replicas cannot take its part.
        """
        attempts: list[Attempt] = []
        for part in _cut(share, assignment):
            try:
                attempts.append(self._send(part))
            except errors.ReplicaUnavailable:
                self._failed.add(part.replica_id)
                for attempt in attempts:
                    attempt.abandon()
                raise
        return Way(attempts)

    def _way_elsewhere(self, share: ReplicaShare, avoid: Collection[str]) -> Way | None:
        """Send a share to holders other than those to avoid; None where there are none."""
        assignment = self._streams.assign_elsewhere(_counts(share), avoid=avoid)
        try:
            return None if assignment is None else self._way(share, assignment)
        except errors.ReplicaUnavailable:
            return None

    def _send(self, share: ReplicaShare, *, is_traced: bool = True) -> Attempt:
        stream = self._streams.get(share.replica_id)
        if stream is None:
            raise errors.ReplicaUnavailable(f"replica {share.replica_id} left the placement: try another")
        span = self._span(share) if is_traced and self._trace is not None else None
        try:
            attempt = self._sender.send(
                share,
                stream,
                self._tokens,
                layer=self._layer,
                placement_version=self._streams.placement.version,
                timeout_s=min(self._timeouts.answer_s, max(self._give_up_at - time.monotonic(), 0)),
                span=span,
            )
        except errors.ServingError as error:
            if span is not None:
                span.failed(error)
            raise
        self.num_neighbours += stream.is_on_this_host
        return attempt

    def _span(self, share: ReplicaShare) -> CallSpan | None:
        assert self._trace is not None
        return self._trace.call("dispatch", self._layer, share.replica_id, share.stop - share.start)

    def _next_pause(self) -> float:
        pause_s, self._pause_s = self._pause_s, min(self._pause_s * 2, _LONGEST_PAUSE_S)
        return pause_s

    def _pause(self, seconds: float) -> None:
        """Wait, at most until patience ends, a stream becomes usable or the placement changes."""
        until = min(time.monotonic() + seconds, self._give_up_at)
        while (left_s := until - time.monotonic()) > 0:
            if self._streams.wait_change(min(left_s, WAIT_STEP_S)):
                return
            self._on_wait()


def _is_bad_answer(error: errors.ServingError) -> bool:
    """Tell whether an answer says that it, or the dispatch, is wrong: ours or theirs, or damaged on the way."""
    return isinstance(error, errors.WireError | errors.InternalError)


def _counts(share: ReplicaShare) -> dict[int, int]:
    return dict(zip(share.expert_ids, share.token_counts, strict=True))


def _cut(share: ReplicaShare, assignment: Assignment) -> list[ReplicaShare]:
    """Cut a share into runs of rows that go to one replica, rows in order."""
    pieces = [(replica, expert, count) for expert in share.expert_ids for replica, count in assignment[expert]]
    cut: list[ReplicaShare] = []
    start = share.start
    for replica_id, run in itertools.groupby(pieces, key=itemgetter(0)):
        _, expert_ids, token_counts = zip(*run, strict=True)
        stop = start + sum(token_counts)
        cut.append(ReplicaShare(replica_id, expert_ids, token_counts, start, stop))
        start = stop
    return cut
