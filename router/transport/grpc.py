"""Experts in other processes, over persistent gRPC streams; a failed dispatch goes to another holder."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from protos import errors
from protos.codec import decode_tensor, write_tensor
from protos.expert.v1 import expert_pb2
from protos.shared_memory import write_shared
from router.placement import ExpertHolder, Placement
from router.plan import DispatchPlan, ReplicaShare
from router.transport.base import WAIT_STEP_S
from router.transport.slots import Slot
from router.transport.stream import Answer, ReplicaStream
from router.transport.streams import ReplicaStreams

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.25
_MOST_MS = 2**32 - 1

SHARE_FROM_BYTES = 32 * 1024
"""Smallest tensor that is shared rather than sent where replica and router share memory: see docs/wire.md."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DispatchTimeouts:
    """How long a dispatch may take."""

    answer_s: float = 20.0
    """Seconds one replica has to answer before its stream is reset and another holder is asked."""
    patience_s: float = 60.0
    """Seconds a layer waits for a holder of an expert, and a dispatch for its answers, resending and restarts of the
    only holder included, before it fails."""


class GrpcTransport:
    """Dispatches to expert replicas over one stream each.

    `update`, `wait_ready` and `close` may be called from any thread, the rest from the step loop's.

    Args:
        router_id: who we are, for logs.
        fingerprint: of our model.
        timeouts: how long to wait for answers.
        share_from_bytes: smallest tensor that travels through memory shared with a replica on this host; None: none.
    """

    def __init__(
        self,
        *,
        router_id: str,
        fingerprint: str,
        timeouts: DispatchTimeouts = DispatchTimeouts(),
        share_from_bytes: int | None = SHARE_FROM_BYTES,
    ) -> None:
        def connect(holder: ExpertHolder, on_ready: Callable[[], None]) -> ReplicaStream:
            return ReplicaStream(
                holder,
                router_id=router_id,
                fingerprint=fingerprint,
                on_ready=on_ready,
                shares_memory=share_from_bytes is not None,
            )

        self.timeouts = timeouts
        self.share_from_bytes = share_from_bytes
        self.on_wait: Callable[[], None] = lambda: None
        self._streams = ReplicaStreams(connect, timeouts.patience_s)
        self._dispatch_ids = itertools.count(1)

    @property
    def placement(self) -> Placement:
        """Return the placement in force."""
        return self._streams.placement

    def update(self, placement: Placement) -> None:
        """Put a newer placement in force: connect to new replicas, leave those that are gone."""
        self._streams.update(placement)

    def is_ready(self, experts: range) -> bool:
        """Tell whether each of these experts can be reached now."""
        return self._streams.is_ready(experts)

    def wait_ready(self, experts: range, timeout_s: float) -> bool:
        """Wait until each of these experts can be reached; tell whether that came in time."""
        return self._streams.wait_ready(experts, timeout_s)

    def stream(self, replica_id: str) -> ReplicaStream | None:
        """Return the stream to a replica, None when it left the placement."""
        return self._streams.get(replica_id)

    def choose_replica(self, expert: int) -> str:
        """Name a connected holder, the holders of an expert in turn; waits for one to come back."""
        give_up_at = time.monotonic() + self.timeouts.patience_s
        return self._streams.choose(expert, avoid=(), give_up_at=give_up_at, on_wait=self.on_wait)

    def dispatch(self, layer: int, plan: DispatchPlan, hidden_ND: Tensor) -> _Pending:
        """Send each share to its replica."""
        pending = _Pending(self, self._streams, self._dispatch_ids, layer, hidden_ND)
        pending.send(plan.shares)
        return pending

    def close(self) -> None:
        """Close every stream and end every wait. Idempotent."""
        self._streams.close()


@dataclass(frozen=True, slots=True)
class _Sent:
    """A share on its way."""

    share: ReplicaShare
    dispatch_id: int
    answer: Answer
    slot: Slot | None
    """Where its tensor lies, if not in its message."""
    timeout_s: float
    due_at: float
    """Monotonic second after which the answer is no longer waited for: `timeout_s` after it was sent."""


class _Pending:
    """A dispatch under way: which shares were sent where, and who failed it so far."""

    def __init__(
        self,
        transport: GrpcTransport,
        streams: ReplicaStreams,
        dispatch_ids: Iterator[int],
        layer: int,
        hidden_ND: Tensor,
    ) -> None:
        self._streams = streams
        self._timeouts = transport.timeouts
        self._on_wait = transport.on_wait
        self._share_from_bytes = transport.share_from_bytes
        self._dispatch_ids = dispatch_ids
        self._layer = layer
        self._hidden_ND = hidden_ND
        self._give_up_at = time.monotonic() + self._timeouts.patience_s
        self._sent: list[_Sent] = []
        self.num_neighbours = 0
        """Replicas of this host among those that were sent something."""
        self._failed: set[str] = set()
        self._pause_s = _FIRST_PAUSE_S

    def send(self, shares: tuple[ReplicaShare, ...]) -> None:
        """Send shares to their replicas, or to other holders of their experts where a replica has gone."""
        unsent = list(shares)
        try:
            while unsent:
                share = unsent.pop(0)
                try:
                    self._send(share)
                except errors.ReplicaUnavailable:
                    unsent = self._reassign(share) + unsent
        except BaseException:
            self.give_up()
            raise

    def wait(self) -> Tensor:
        """Return the outputs [N, D], resending what fails until it is answered or patience ends."""
        answered: list[tuple[_Sent, Tensor]] = []
        try:
            while self._sent:
                sent = self._sent[0]
                try:
                    answered.append((sent, self._rows(sent)))
                except errors.ServingError as error:
                    self._resend(sent.share, error)
                    _let_go(sent)
                del self._sent[0]
            answered.sort(key=lambda pair: pair[0].share.start)
            return self._joined(answered)
        finally:
            for sent, _ in answered:
                _let_go(sent)
            self.give_up()

    def _joined(self, answered: list[tuple[_Sent, Tensor]]) -> Tensor:
        """Return the rows of all shares as one tensor that lies in no slot."""
        if not answered:
            return self._hidden_ND
        if len(answered) > 1:
            outputs_ND = torch.cat([rows_nD for _, rows_nD in answered])
        else:
            ((sent, rows_nD),) = answered
            outputs_ND = rows_nD.clone() if sent.slot else rows_nD
        return outputs_ND.to(self._hidden_ND.device)

    def _send(self, share: ReplicaShare) -> None:
        stream = self._streams.get(share.replica_id)
        if stream is None:
            raise errors.ReplicaUnavailable(f"replica {share.replica_id} left the placement: try another")
        now = time.monotonic()
        timeout_s = min(self._timeouts.answer_s, self._give_up_at - now)
        request = expert_pb2.DispatchRequest()
        dispatch = request.dispatch
        dispatch.dispatch_id = next(self._dispatch_ids)
        dispatch.placement_version = self._streams.placement.version
        dispatch.layer = self._layer
        dispatch.expert_ids.extend(share.expert_ids)
        dispatch.token_counts.extend(share.token_counts)
        dispatch.deadline_ms = min(max(int(timeout_s * 1000), 1), _MOST_MS)
        hidden_nD = self._hidden_ND[share.start : share.stop]
        slot = self._slot(stream, hidden_nD)
        try:
            if slot is None:
                write_tensor(dispatch.hidden, hidden_nD)
            else:
                slot.write(hidden_nD)
                write_shared(dispatch.hidden, hidden_nD, slot.offset)
            answer = stream.send(request, slot)
            self.num_neighbours += stream.is_on_this_host
        except BaseException:
            if slot is not None:
                slot.let_go()
            raise
        self._sent.append(_Sent(share, dispatch.dispatch_id, answer, slot, timeout_s, now + timeout_s))

    def _slot(self, stream: ReplicaStream, hidden_nD: Tensor) -> Slot | None:
        """Return shared memory for a tensor, if there is some and it is worth it."""
        num_bytes = hidden_nD.numel() * hidden_nD.itemsize
        if self._share_from_bytes is None or num_bytes < self._share_from_bytes:
            return None
        return stream.take_slot(num_bytes)

    def _rows(self, sent: _Sent) -> Tensor:
        """Return the outputs of one share, perhaps in its slot, or raise what came instead."""
        share = sent.share
        result = self._answer(sent)
        if result is None:
            if (stream := self._streams.get(share.replica_id)) is not None:
                stream.reset()
            raise errors.ReplicaUnavailable(
                f"expected replica {share.replica_id} to answer layer {self._layer} within {sent.timeout_s:.3g} s, "
                "found no answer: its stream was reset"
            )
        shape = (share.stop - share.start, self._hidden_ND.shape[1])
        dtype, name = self._hidden_ND.dtype, "expert output"
        if not result.hidden.HasField("shared"):
            return decode_tensor(result.hidden, dtype=dtype, shape=shape, name=name)
        if sent.slot is None or result.hidden.shared.offset != sent.slot.offset:
            raise errors.BadTensor(f"{name}: expected it where the tokens were, found it elsewhere: check the replica")
        return sent.slot.slots.segment.read(result.hidden, dtype=dtype, shape=shape, name=name)

    def _answer(self, sent: _Sent) -> expert_pb2.DispatchResult | None:
        """Return what a replica answered, None if it did not in time."""
        while True:
            left_s = max(sent.due_at - time.monotonic(), 0)
            try:
                return sent.answer.result(min(left_s, WAIT_STEP_S))
            except FutureTimeoutError:
                if not left_s:
                    return None
            self._on_wait()

    def _resend(self, share: ReplicaShare, error: errors.ServingError) -> None:
        """Send a failed share to other holders, after a pause; raise the error if that cannot help or is too late.

        A replica that finds a dispatch late is no different from one that does not answer: another may be faster.
        """
        if not (error.retryable or isinstance(error, errors.DeadlineExceeded)):
            raise error
        # Where nobody else holds the experts, a replica that refuses them is asked in vain for a while.
        self._pause(max(error.retry_after_ms / 1000, self._pause_s))
        self._pause_s = min(self._pause_s * 2, _LONGEST_PAUSE_S)
        if time.monotonic() >= self._give_up_at:
            raise error
        self.send(tuple(self._reassign(share)))

    def _pause(self, seconds: float) -> None:
        """Wait, at most until patience ends, a stream becomes usable or the placement changes."""
        until = min(time.monotonic() + seconds, self._give_up_at)
        while (left_s := until - time.monotonic()) > 0:
            if self._streams.wait_change(min(left_s, WAIT_STEP_S)):
                return
            self._on_wait()

    def _reassign(self, share: ReplicaShare) -> list[ReplicaShare]:
        """Split a failed share over holders of its experts that have not failed this dispatch, rows in order."""
        self._failed.add(share.replica_id)
        chosen = [
            self._streams.choose(expert, avoid=self._failed, give_up_at=self._give_up_at, on_wait=self._on_wait)
            for expert in share.expert_ids
        ]
        shares: list[ReplicaShare] = []
        start = share.start
        experts = zip(chosen, share.expert_ids, share.token_counts, strict=True)
        for replica_id, neighbours in itertools.groupby(experts, key=itemgetter(0)):
            _, expert_ids, token_counts = zip(*neighbours, strict=True)
            stop = start + sum(token_counts)
            shares.append(ReplicaShare(replica_id, expert_ids, token_counts, start, stop))
            start = stop
        return shares

    def give_up(self) -> None:
        """Drop the answers nobody will read."""
        for sent in self._sent:
            if (stream := self._streams.get(sent.share.replica_id)) is not None:
                stream.forget(sent.dispatch_id)
            _let_go(sent)
        self._sent.clear()


def _let_go(sent: _Sent) -> None:
    """Give up a share's slot, if it has one: whatever was in it has been copied or is not wanted."""
    if sent.slot is not None:
        sent.slot.let_go()
