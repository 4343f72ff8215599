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
from dataclasses import dataclass, field, replace
from operator import itemgetter

import torch
from torch import Tensor

from protos import errors
from router.plan import ReplicaShare
from router.spread import Assignment
from router.transport.answer_times import AnswerTimes, HedgeBudget
from router.transport.attempt import Attempt, Sender
from router.transport.base import WAIT_STEP_S
from router.transport.ejection import EJECT_AFTER, Ejection
from router.transport.streams import ReplicaStreams

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.25
_MOST_BAD_ANSWERS = 3
"""Answers to one dispatch that are wrong, or say that it is: one may be damage on the way, three are our bug."""
_LARGEST_PROBE = 64
"""Tokens of the largest share that is copied to a replica as a probe."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DispatchTimeouts:
    """How long a dispatch may take."""

    answer_s: float = 20.0
    """Seconds one replica has to answer before its stream is reset and another holder is asked."""
    patience_s: float = 600.0
    """Seconds a layer waits for a holder of an expert, and a dispatch for its answers, resending and restarts of the
    only holder included, before it fails."""


@dataclass(kw_only=True, slots=True)
class DispatchCounts:
    """What became of dispatches since the start."""

    shares: int = 0
    """Sent to a replica for the first time."""
    hedges: int = 0
    """Sent to another holder as well, for the first was late."""
    resends: int = 0
    """Sent to another holder instead, for the first failed."""
    probes: int = 0
    """Copied to an ejected replica."""


@dataclass(slots=True)
class Evidence:
    """What a transport learns from its dispatches. Belongs to one thread."""

    times: AnswerTimes = field(default_factory=AnswerTimes)
    budget: HedgeBudget = field(default_factory=HedgeBudget)
    ejection: Ejection = field(default_factory=Ejection)
    counts: DispatchCounts = field(default_factory=DispatchCounts)
    probes: dict[str, Attempt] = field(default_factory=dict)
    """By replica, the newest probe under way."""


class _Way:
    """One way to have a share answered: by one replica, or by several together."""

    __slots__ = ("attempts", "rows")

    def __init__(self, attempts: list[Attempt]) -> None:
        self.attempts = attempts
        self.rows: list[Tensor | None] = [None] * len(attempts)

    @property
    def is_answered(self) -> bool:
        return None not in self.rows

    def abandon(self) -> None:
        for attempt in self.attempts:
            attempt.abandon()


class _Asked:
    """A share and the ways in which an answer is under way; the first to come is taken."""

    __slots__ = ("hedge_at", "sent_at", "share", "ways")

    def __init__(self, share: ReplicaShare, way: _Way, hedge_after_s: float) -> None:
        self.share = share
        self.ways = [way]
        self.sent_at = way.attempts[0].sent_at
        self.hedge_at = self.sent_at + hedge_after_s

    def waiting(self) -> list[tuple[_Way, int]]:
        return [(way, i) for way in self.ways for i, rows_nD in enumerate(way.rows) if rows_nD is None]


class Pending:
    """Implements PendingDispatch over streams.

    Args:
        streams: to the replicas.
        sender: writes.
        evidence: what is known of the replicas; learns from this dispatch.
        timeouts: how long to wait.
        on_wait: see `Transport.on_wait`.
        layer: decoder layer.
        hidden_ND: [N, D] in the plan's order.
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
    ) -> None:
        self._streams = streams
        self._sender = sender
        self._evidence = evidence
        self._timeouts = timeouts
        self._on_wait = on_wait
        self._layer = layer
        self._hidden_ND = hidden_ND
        self._give_up_at = time.monotonic() + timeouts.patience_s
        self._sent: list[Attempt] = []
        """Shares that were sent and are not settled, each where it went first."""
        self._asked: _Asked | None = None
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
            if self._evidence.ejection.ejected:
                self._probe(shares)
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
        """Return the rows of all shares as one tensor that lies in no slot."""
        if not answered:
            return self._hidden_ND
        if len(answered) > 1:
            outputs_ND = torch.cat([rows_nD for _, rows_nD in answered])
        else:
            ((attempt, rows_nD),) = answered
            outputs_ND = rows_nD.clone() if attempt.slot else rows_nD
        return outputs_ND.to(self._hidden_ND.device)

    def _as_planned(self, attempt: Attempt) -> Tensor | None:
        """Return the rows of a share that is answered well and in time; None: it needs a closer look.

        Nearly every share of every layer ends here. So this does little, and nothing that others could do for it.
        """
        evidence, num_tokens = self._evidence, attempt.share.stop - attempt.share.start
        evidence.counts.shares += 1
        evidence.budget.earn()
        wait_s = attempt.sent_at + evidence.times.hedge_after_s(num_tokens) - time.monotonic()
        try:
            at_s = attempt.answer.result(min(max(wait_s, 0), WAIT_STEP_S)).at_s
            rows_nD = attempt.rows(self._hidden_ND)
        except (TimeoutError, errors.ServingError):
            return None
        evidence.times.observe(num_tokens, at_s - attempt.sent_at)
        if evidence.ejection.has_records:
            evidence.ejection.won(attempt.replica_id, at_s)
        return rows_nD

    def _settle(self, attempt: Attempt) -> list[tuple[Attempt, Tensor]]:
        """Return what answers a share, after as many tries as it takes."""
        share = attempt.share
        hedge_after_s = self._evidence.times.hedge_after_s(share.stop - share.start)
        asked = self._asked = _Asked(share, _Way([attempt]), hedge_after_s)
        while True:
            try:
                return self._first_answer(asked)
            except errors.ServingError as error:
                self._ask_again(asked, error)

    def _first_answer(self, asked: _Asked) -> list[tuple[Attempt, Tensor]]:
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

    def _next_done(self, asked: _Asked) -> tuple[_Way, int]:
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
            return attempt.rows(self._hidden_ND)
        attempt.stream.reset()
        raise errors.ReplicaUnavailable(
            f"expected replica {attempt.replica_id} to answer layer {self._layer} within "
            f"{attempt.due_at - attempt.sent_at:.3g} s, found no answer: its stream was reset"
        )

    def _hedge(self, asked: _Asked, now: float) -> None:
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

    def _note_answer(self, asked: _Asked, winner: _Way) -> None:
        """Learn from who answered a share, and drop the other ways."""
        ejection = self._evidence.ejection
        at_s = max(attempt.answer.result(0).at_s for attempt in winner.attempts)
        # From when it was first sent: what the step waited, whoever made it wait.
        self._evidence.times.observe(asked.share.stop - asked.share.start, at_s - asked.sent_at)
        for attempt in winner.attempts:
            ejection.won(attempt.replica_id, at_s)
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
        if not attempt.answer.done():
            self._evidence.ejection.lost(attempt.replica_id, time.monotonic(), weight=EJECT_AFTER)
        elif _is_bad_answer(error):
            self._num_bad_answers += 1
            self._evidence.ejection.lost(attempt.replica_id, time.monotonic())

    def _ask_again(self, asked: _Asked, error: errors.ServingError) -> None:
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

    def _other_way(self, share: ReplicaShare) -> _Way:
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

    def _way(self, share: ReplicaShare, assignment: Assignment) -> _Way:
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
        return _Way(attempts)

    def _way_elsewhere(self, share: ReplicaShare, avoid: Collection[str]) -> _Way | None:
        """Send a share to holders other than those to avoid; None where there are none."""
        assignment = self._streams.assign_elsewhere(_counts(share), avoid=avoid)
        try:
            return None if assignment is None else self._way(share, assignment)
        except errors.ReplicaUnavailable:
            return None

    def _send(self, share: ReplicaShare) -> Attempt:
        stream = self._streams.get(share.replica_id)
        if stream is None:
            raise errors.ReplicaUnavailable(f"replica {share.replica_id} left the placement: try another")
        attempt = self._sender.send(
            share,
            stream,
            self._hidden_ND,
            layer=self._layer,
            placement_version=self._streams.placement.version,
            timeout_s=min(self._timeouts.answer_s, max(self._give_up_at - time.monotonic(), 0)),
        )
        self.num_neighbours += stream.is_on_this_host
        return attempt

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

    def _probe(self, shares: Collection[ReplicaShare]) -> None:
        """See what became of probes, and copy a share to ejected replicas whose time has come."""
        evidence, now = self._evidence, time.monotonic()
        for replica_id, probe in list(evidence.probes.items()):
            if probe.answer.done():
                del evidence.probes[replica_id]
                self._judge(probe)
        for replica_id in evidence.ejection.ejected:
            stream = self._streams.get(replica_id)
            if stream is not None and stream.last_answer_at > now - WAIT_STEP_S:
                evidence.ejection.hurry(replica_id, now)
        for replica_id in evidence.ejection.due(now):
            stream = self._streams.get(replica_id)
            if stream is None or not stream.is_ready:
                continue
            held = set(stream.holder.expert_ids)
            fitting = [
                share
                for share in shares
                if share.stop - share.start <= _LARGEST_PROBE and held.issuperset(share.expert_ids)
            ]
            if not fitting:
                continue
            try:
                probe = self._send(replace(fitting[0], replica_id=replica_id))
            except errors.ReplicaUnavailable:
                continue
            evidence.counts.probes += 1
            evidence.probes[replica_id] = probe

    def _judge(self, probe: Attempt) -> None:
        """Readmit a replica that answered a probe well and in time."""
        num_tokens = probe.share.stop - probe.share.start
        try:
            probe.rows(self._hidden_ND)
        except errors.ServingError:
            return
        finally:
            probe.let_go()
        at_s = probe.answer.result(0).at_s
        if at_s - probe.sent_at <= self._evidence.times.hedge_after_s(num_tokens):
            self._evidence.ejection.won(probe.replica_id, at_s)


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
