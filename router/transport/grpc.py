"""Experts in other processes, over persistent gRPC streams; a failed dispatch goes to another holder."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass

import torch
from torch import Tensor

from protos import errors
from protos.codec import decode_tensor, encode_tensor
from protos.expert.v1 import expert_pb2
from router.placement import Placement
from router.plan import DispatchPlan, ReplicaShare
from router.transport.stream import Answer, ReplicaStream

_RETRY_PAUSE_MS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class DispatchTimeouts:
    """How long a dispatch may take."""

    answer_s: float = 20.0
    """Seconds one replica has to answer before its stream is reset and another holder is asked."""
    patience_s: float = 60.0
    """Seconds a dispatch waits in all, restarts of the only holder included, before it fails."""


class GrpcTransport:
    """Dispatches to expert replicas over one stream each.

    Args:
        router_id: who we are, for logs.
        fingerprint: of our model.
        timeouts: how long to wait for answers.
    """

    def __init__(self, *, router_id: str, fingerprint: str, timeouts: DispatchTimeouts = DispatchTimeouts()) -> None:
        self._router_id = router_id
        self._fingerprint = fingerprint
        self.timeouts = timeouts
        self._changed = threading.Condition()
        self._streams: dict[str, ReplicaStream] = {}
        self._placement = Placement(version=0, holders=())
        self._dispatch_ids = itertools.count(1)
        self._turn = itertools.count()
        self._closed = False

    @property
    def placement(self) -> Placement:
        """Return the placement in force."""
        return self._placement

    def update(self, placement: Placement) -> None:
        """Put a newer placement in force: connect to new replicas, leave those that are gone. Thread-safe."""
        with self._changed:
            if self._closed or placement.version < self._placement.version:
                return
            wanted = {holder.replica_id: holder for holder in placement.holders}
            gone = [self._streams.pop(replica_id) for replica_id in set(self._streams) - set(wanted)]
            for replica_id in set(wanted) - set(self._streams):
                self._streams[replica_id] = ReplicaStream(
                    wanted[replica_id],
                    router_id=self._router_id,
                    fingerprint=self._fingerprint,
                    on_ready=self._wake,
                )
            self._placement = placement
            self._changed.notify_all()
        for stream in gone:
            stream.close()

    def is_ready(self, experts: range) -> bool:
        """Tell whether each of these experts can be reached now."""
        return all(self._ready_holders(expert) for expert in experts)

    def wait_ready(self, experts: range, timeout_s: float) -> bool:
        """Wait until each of these experts can be reached; tell whether that came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_ready(experts), timeout_s)

    def choose_replica(self, expert: int) -> str:
        """Name a connected holder, the holders of an expert in turn; waits for one to come back."""
        return self._choose(expert, frozenset(), time.monotonic() + self.timeouts.patience_s)

    def dispatch(self, layer: int, plan: DispatchPlan, hidden_ND: Tensor) -> _Pending:
        """Send each share to its replica."""
        give_up_at = time.monotonic() + self.timeouts.patience_s
        pending = _Pending(self, layer, hidden_ND, give_up_at)
        for share in plan.shares:
            pending.send(share)
        return pending

    def close(self) -> None:
        """Close every stream. Idempotent."""
        with self._changed:
            self._closed = True
            streams, self._streams = list(self._streams.values()), {}
            self._changed.notify_all()
        for stream in streams:
            stream.close()

    def stream(self, replica_id: str) -> ReplicaStream | None:
        """Return the stream to a replica, None when it left the placement."""
        return self._streams.get(replica_id)

    def next_dispatch_id(self) -> int:
        """Return an id no dispatch of this router had."""
        return next(self._dispatch_ids)

    def reassign(self, share: ReplicaShare, give_up_at: float) -> list[ReplicaShare]:
        """Split a failed share over other holders of its experts, in the same order of rows.

        Raises:
            NoReplica: an expert has no connected holder by `give_up_at`.
        """
        failed = frozenset((share.replica_id,))
        shares, start = [], share.start
        for expert, count in zip(share.expert_ids, share.token_counts, strict=True):
            replica_id = self._choose(expert, failed, give_up_at)
            shares.append(ReplicaShare(replica_id, (expert,), (count,), start, start + count))
            start += count
        return shares

    def _choose(self, expert: int, avoid: frozenset[str], give_up_at: float) -> str:
        """Name a connected holder outside `avoid`; one inside it when it is the only one and has reconnected."""
        with self._changed:
            while not self._closed:
                ready = self._ready_holders(expert)
                if choices := [replica for replica in ready if replica not in avoid] or ready:
                    return choices[next(self._turn) % len(choices)]
                left_s = give_up_at - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(min(left_s, 0.5))
        known = self._placement.replicas_by_expert.get(expert, ())
        raise errors.NoReplica(
            f"expected a connected replica that holds expert {expert}, found none of {list(known)} connected "
            f"within {self.timeouts.patience_s:g} s: try again, and see `herd status` for the replicas"
        )

    def _ready_holders(self, expert: int) -> list[str]:
        holders = self._placement.replicas_by_expert.get(expert, ())
        return [replica for replica in holders if (stream := self._streams.get(replica)) and stream.is_ready]

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class _Pending:
    """A dispatch under way: which shares were sent where, and the rows that have come back."""

    def __init__(self, transport: GrpcTransport, layer: int, hidden_ND: Tensor, give_up_at: float) -> None:
        self._transport = transport
        self._layer = layer
        self._hidden_ND = hidden_ND
        self._give_up_at = give_up_at
        self._sent: list[tuple[ReplicaShare, Answer]] = []

    def send(self, share: ReplicaShare) -> None:
        """Send rows to the share's replica, or to other holders of its experts while that one is gone."""
        unsent = [share]
        while unsent:
            part = unsent.pop(0)
            stream = self._transport.stream(part.replica_id)
            try:
                if stream is None:
                    raise errors.ReplicaUnavailable(f"replica {part.replica_id} left")
                self._sent.append((part, stream.send(self._message(part))))
            except errors.ReplicaUnavailable:
                unsent = self._transport.reassign(part, self._give_up_at) + unsent

    def wait(self) -> Tensor:
        """Return the outputs [N, D], resending what fails until it is answered or patience ends."""
        parts: list[tuple[int, Tensor]] = []
        while self._sent:
            share, answer = self._sent.pop(0)
            try:
                parts.append((share.start, self._rows(share, answer)))
            except errors.ServingError as error:
                if not error.retryable or time.monotonic() >= self._give_up_at:
                    raise
                # A replica that refuses is asked again in vain for a moment; one that died is not asked at all.
                time.sleep(max(error.retry_after_ms, _RETRY_PAUSE_MS) / 1000)
                for part in self._transport.reassign(share, self._give_up_at):
                    self.send(part)
        parts.sort(key=lambda part: part[0])
        outputs = [rows for _, rows in parts]
        outputs_ND = outputs[0] if len(outputs) == 1 else torch.cat(outputs) if outputs else self._hidden_ND
        return outputs_ND.to(self._hidden_ND.device)

    def _rows(self, share: ReplicaShare, answer: Answer) -> Tensor:
        timeout_s = min(self._transport.timeouts.answer_s, self._give_up_at - time.monotonic())
        try:
            result = answer.result(max(timeout_s, 0))
        except FutureTimeoutError:
            stream = self._transport.stream(share.replica_id)
            if stream is not None:
                stream.reset()
            raise errors.ReplicaUnavailable(
                f"expected replica {share.replica_id} to answer layer {self._layer} within {timeout_s:.1f} s, "
                "found no answer: its stream was reset"
            ) from None
        shape = (share.stop - share.start, self._hidden_ND.shape[1])
        return decode_tensor(result.hidden, dtype=self._hidden_ND.dtype, shape=shape, name="expert output")

    def _message(self, share: ReplicaShare) -> expert_pb2.Dispatch:
        left_ms = int((self._give_up_at - time.monotonic()) * 1000)
        return expert_pb2.Dispatch(
            dispatch_id=self._transport.next_dispatch_id(),
            placement_version=self._transport.placement.version,
            layer=self._layer,
            expert_ids=share.expert_ids,
            token_counts=share.token_counts,
            hidden=encode_tensor(self._hidden_ND[share.start : share.stop]),
            deadline_ms=max(left_ms, 1),
        )
