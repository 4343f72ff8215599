"""The streams to every replica of a placement, and which of them can run an expert now."""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator

from protos import errors
from router.placement import ExpertHolder, Placement
from router.transport.base import WAIT_STEP_S
from router.transport.stream import ReplicaStream

Connect = Callable[[ExpertHolder, Callable[[], None]], ReplicaStream]
"""(whom to connect to, what to call whenever the stream becomes usable) -> a stream that connects."""


class ReplicaStreams:
    """One stream to each replica of the placement in force.

    Any thread may use it; `choose` is the step loop's alone.

    Args:
        connect: makes a stream.
        patience_s: how long those who choose wait at most, for messages.
    """

    def __init__(self, connect: Connect, patience_s: float) -> None:
        self._connect = connect
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._streams: dict[str, ReplicaStream] = {}
        self._placement = Placement(version=0, holders=())
        # Experts begin with different holders, so that those of one step spread over replicas that hold them all.
        self._turns: defaultdict[int, Iterator[int]] = defaultdict(lambda: itertools.count(len(self._turns)))
        self._is_closed = False

    @property
    def placement(self) -> Placement:
        """Return the placement in force."""
        return self._placement

    def get(self, replica_id: str) -> ReplicaStream | None:
        """Return the stream to a replica, None when it left the placement."""
        return self._streams.get(replica_id)

    def update(self, placement: Placement) -> None:
        """Put a newer placement in force: connect to new replicas, leave those that are gone."""
        with self._changed:
            if self._is_closed or placement.version < self._placement.version:
                return
            wanted = {holder.replica_id: holder for holder in placement.holders}
            gone = [self._streams.pop(replica_id) for replica_id in set(self._streams) - set(wanted)]
            for replica_id in set(wanted) - set(self._streams):
                self._streams[replica_id] = self._connect(wanted[replica_id], self._wake)
            self._placement = placement
            self._changed.notify_all()
        for stream in gone:
            stream.close()

    def close(self) -> None:
        """Close every stream and wake whoever waits. Idempotent."""
        with self._changed:
            self._is_closed = True
            streams, self._streams = list(self._streams.values()), {}
            self._changed.notify_all()
        for stream in streams:
            stream.close()

    def is_ready(self, experts: range) -> bool:
        """Tell whether each of these experts can be reached now."""
        return all(self._ready_holders(expert) for expert in experts)

    def wait_ready(self, experts: range, timeout_s: float) -> bool:
        """Wait until each of these experts can be reached; tell whether that came in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self.is_ready(experts), timeout_s)

    def wait_change(self, timeout_s: float) -> bool:
        """Wait until a stream becomes usable or the placement changes; tell whether that came in time."""
        with self._changed:
            return self._is_closed or self._changed.wait(timeout_s)

    def choose(self, expert: int, *, avoid: Collection[str], give_up_at: float, on_wait: Callable[[], None]) -> str:
        """Name a connected holder of an expert, its holders in turn; wait for one if there is none.

        Args:
            expert: logical expert.
            avoid: replicas to name only if no other holder is connected.
            give_up_at: monotonic second until which to wait.
            on_wait: see `Transport.on_wait`.

        Raises:
            NoReplica: no holder was connected in time, or the streams are closed.
        """
        while True:
            with self._changed:
                if self._is_closed:
                    raise errors.NoReplica(
                        "expected streams to expert replicas, found them closed: the router stops, try another"
                    )
                ready = self._ready_holders(expert)
                if choices := [replica for replica in ready if replica not in avoid] or ready:
                    return choices[next(self._turns[expert]) % len(choices)]
                left_s = give_up_at - time.monotonic()
                if left_s <= 0:
                    raise self._no_holder(expert)
                self._changed.wait(min(left_s, WAIT_STEP_S))
            on_wait()

    def _ready_holders(self, expert: int) -> list[str]:
        holders = self._placement.replicas_by_expert.get(expert, ())
        return [replica for replica in holders if (stream := self._streams.get(replica)) and stream.is_ready]

    def _no_holder(self, expert: int) -> errors.NoReplica:
        known = self._placement.replicas_by_expert.get(expert, ())
        streams = [stream for replica in known if (stream := self._streams.get(replica)) is not None]
        failures = "; ".join(f"{s.holder.replica_id}: {s.failure}" for s in streams if s.failure is not None)
        return errors.NoReplica(
            f"expected a connected replica that holds expert {expert}, found none of {list(known)} connected within "
            f"{self._patience_s:g} s{failures and f' ({failures})'}: try again, and see `herd status` for the replicas"
        )

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()
