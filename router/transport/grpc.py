"""Experts in other processes, over persistent gRPC streams; what becomes of a dispatch is in `pending.py`."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from protos.errors import NoReplica
from protos.tls import Identity
from router.placement import ExpertHolder, Placement
from router.plan import DispatchPlan
from router.spread import Assignment
from router.trace import StepSpan
from router.transport.attempt import Sender
from router.transport.evidence import Evidence
from router.transport.health import TransportHealth
from router.transport.pending import Pending
from router.transport.stream import CPU, ReplicaStream
from router.transport.streams import ReplicaStreams
from router.transport.timeouts import DispatchTimeouts

SHARE_FROM_BYTES = 32 * 1024
"""Smallest tensor that is shared rather than sent where replica and router share memory: see docs/wire.md."""


class GrpcTransport:
    """Dispatches to expert replicas over one stream each.

    `update`, `wait_ready`, `health` and `close` may be called from any thread, the rest from the step loop's.

    Args:
        router_id: who we are, for logs.
        fingerprint: of our model.
        timeouts: how long to wait for answers.
        share_from_bytes: smallest tensor that travels through memory shared with a replica on this host; None: none.
        device: where tokens are; a GPU's memory is shared as well, whatever a tensor's size.
        stands_back: let the dispatches of other routers pass at the replicas.
        identity: what to show replicas and to believe; None: no encryption.
    """

    def __init__(
        self,
        *,
        router_id: str,
        fingerprint: str,
        timeouts: DispatchTimeouts | None = None,
        share_from_bytes: int | None = SHARE_FROM_BYTES,
        device: torch.device = CPU,
        stands_back: bool = False,
        identity: Identity | None = None,
    ) -> None:
        def connect(holder: ExpertHolder, on_change: Callable[[], None]) -> ReplicaStream:
            return ReplicaStream(
                holder,
                router_id=router_id,
                fingerprint=fingerprint,
                on_change=on_change,
                shares_memory=share_from_bytes is not None,
                device=device,
                stands_back=stands_back,
                identity=identity,
            )

        self.timeouts = timeouts or DispatchTimeouts()
        self.on_wait: Callable[[], None] = lambda: None
        self.trace: StepSpan | None = None
        self._streams = ReplicaStreams(connect, self.timeouts.patience_s, router_id)
        self._sender = Sender(share_from_bytes)
        self._evidence = Evidence()
        self._known_version = 0

    @property
    def lacking(self) -> NoReplica | None:
        """Return what the step loop waits for, if for a holder of an expert."""
        return self._streams.lacking

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

    def assign(self, token_counts: Mapping[int, int]) -> Assignment:
        """Spread tokens over connected holders that did well; waits where there is none."""
        ejection, placement = self._evidence.ejection, self._streams.placement
        if ejection.ejected and placement.version != self._known_version:
            ejection.keep(frozenset(holder.replica_id for holder in placement.holders))
            self._known_version = placement.version
        give_up_at = time.monotonic() + self.timeouts.patience_s
        return self._streams.assign(token_counts, avoid=ejection.ejected, give_up_at=give_up_at, on_wait=self.on_wait)

    def dispatch(self, layer: int, plan: DispatchPlan, hidden_ND: Tensor) -> Pending:
        """Send each share to its replica."""
        pending = Pending(
            self._streams, self._sender, self._evidence, self.timeouts, self.on_wait, layer, hidden_ND, self.trace
        )
        pending.send(plan.shares)
        return pending

    def health(self) -> TransportHealth:
        """Return what became of dispatches so far, and who is passed over now."""
        ejection = self._evidence.ejection
        return TransportHealth(
            counts=replace(self._evidence.counts),
            times=replace(self._evidence.parts),
            ejections=ejection.num_ejections,
            ejected=tuple(ejection.ejected),
            lanes=self._streams.lanes,
        )

    def close(self) -> None:
        """Close every stream and end every wait. Idempotent."""
        self._streams.close()
