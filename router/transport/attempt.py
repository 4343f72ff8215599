"""One share of a dispatch on its way to one replica: written, sent, and its answer read."""

from __future__ import annotations

import copy
import itertools
import time
from dataclasses import dataclass

from torch import Tensor

from protos import errors
from protos.checksum import dispatch_checksum, result_checksum
from protos.codec import decode_tensor, write_tensor
from protos.expert.v1 import expert_pb2
from protos.segment import write_shared
from router.plan import ReplicaShare
from router.trace import CallSpan
from router.transport.slots import Slot
from router.transport.stream import Answer, Answered, ReplicaStream
from router.transport.tokens import Tokens

_MOST_MS = 2**32 - 1


@dataclass(slots=True, eq=False)
class Attempt:
    """A share that was sent to a replica. Never changed, and not frozen: that triples what making one takes."""

    share: ReplicaShare
    stream: ReplicaStream
    dispatch_id: int
    answer: Answer
    slot: Slot | None
    """Where its tensor lies, if not in its message."""
    sent_at: float
    """Monotonic second."""
    due_at: float
    """Monotonic second after which the answer is no longer waited for."""
    span: CallSpan | None = None
    """Of it, if it is traced."""

    @property
    def replica_id(self) -> str:
        """Return who was asked."""
        return self.share.replica_id

    def result(self, timeout_s: float = 0) -> Answered:
        """Return the answer once it came.

        Raises:
            ServingError: what came instead; not the very one that is kept with the answer, and with its stream as the
                reason why it broke. An error that was raised has the frames it went through, and all they name: kept,
                it would keep the segment of a broken stream.
            TimeoutError: nothing came in that many seconds.
        """
        try:
            return self.answer.result(timeout_s)
        except errors.ServingError as error:
            error.__traceback__ = None
            raise copy.copy(error) from None

    def rows(self, hidden_ND: Tensor) -> Tensor:
        """Return the outputs [n, D] of the share, perhaps in its slot, once `answer` is done.

        Args:
            hidden_ND: the whole dispatch's tokens, for dtype and width.

        Raises:
            ServingError: what came instead.
            BadTensor: the answer is not of the right form, or was damaged on its way.
        """
        result = self.result().result
        if result.HasField("checksum") and result.checksum != result_checksum(result):
            raise errors.BadTensor(
                f"expert output: expected the checksum {result.checksum} that replica {self.replica_id} sent, found "
                f"{result_checksum(result)}: it was damaged on its way"
            )
        shape = (self.share.stop - self.share.start, hidden_ND.shape[1])
        dtype, name = hidden_ND.dtype, "expert output"
        if not result.hidden.HasField("shared"):
            return decode_tensor(result.hidden, dtype=dtype, shape=shape, name=name)
        if self.slot is None or result.hidden.shared.offset != self.slot.offset:
            raise errors.BadTensor(f"{name}: expected it where the tokens were, found it elsewhere: check the replica")
        return self.slot.slots.segment.read(result.hidden, dtype=dtype, shape=shape, name=name)

    def answered(self, at_s: float, result: expert_pb2.DispatchResult) -> None:
        """Say in the trace, if there is one, that an answer that was used came at a monotonic second."""
        if self.span is not None:
            self.span.answered(at_s - self.sent_at, queue_us=result.queue_us, compute_us=result.compute_us)

    def let_go(self) -> None:
        """Give up the slot, if there is one: whatever was in it has been copied or is not wanted. Idempotent."""
        if self.slot is not None:
            self.slot.let_go()

    def abandon(self) -> None:
        """Drop the answer nobody will read. Idempotent."""
        self.stream.forget(self.dispatch_id)
        self.let_go()
        if self.span is not None:
            self.span.dropped()


class Sender:
    """Writes dispatches. Belongs to one thread.

    Args:
        share_from_bytes: smallest tensor that travels through memory shared with a replica on this host; None: none.
    """

    def __init__(self, share_from_bytes: int | None) -> None:
        self._share_from_bytes = share_from_bytes
        self._dispatch_ids = itertools.count(1)

    def send(
        self,
        share: ReplicaShare,
        stream: ReplicaStream,
        tokens: Tokens,
        *,
        layer: int,
        placement_version: int,
        timeout_s: float,
        span: CallSpan | None = None,
    ) -> Attempt:
        """Send a share's tokens over a stream; the replica is told the span, if there is one.

        Raises:
            ReplicaUnavailable: the stream is not connected, or its replica owes too many answers.
        """
        now = time.monotonic()
        request = expert_pb2.DispatchRequest()
        dispatch = request.dispatch
        dispatch.dispatch_id = next(self._dispatch_ids)
        dispatch.placement_version = placement_version
        dispatch.layer = layer
        dispatch.expert_ids.extend(share.expert_ids)
        dispatch.token_counts.extend(share.token_counts)
        dispatch.deadline_ms = min(max(int(timeout_s * 1000), 1), _MOST_MS)
        if span is not None:
            dispatch.traceparent = span.traceparent
        rows = slice(share.start, share.stop)
        num_bytes = tokens.hidden_ND[rows].nbytes
        slot = self._slot(stream, num_bytes)
        hidden_nD = (tokens.on_host_ND if slot is None else tokens.near(slot.slots.segment.device))[rows]
        try:
            if slot is None:
                write_tensor(dispatch.hidden, hidden_nD)
            else:
                slot.write(hidden_nD)
                write_shared(dispatch.hidden, hidden_nD, slot.offset)
            if stream.crosses_network:
                dispatch.checksum = dispatch_checksum(dispatch)
            answer = stream.send(request, 0 if slot else num_bytes, slot)
        except BaseException:
            if slot is not None:
                slot.let_go()
            raise
        return Attempt(share, stream, dispatch.dispatch_id, answer, slot, now, now + timeout_s, span)

    def _slot(self, stream: ReplicaStream, num_bytes: int) -> Slot | None:
        """Return shared memory for a tensor, if there is some and it is worth it: a GPU's is, whatever the size."""
        is_worth_it = self._share_from_bytes is not None and num_bytes >= self._share_from_bytes
        return stream.take_slot(num_bytes) if is_worth_it or stream.lane.lane == "cuda-ipc" else None
