"""The streams to every replica of a placement, and which of them can run an expert now."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from protos import errors
from router.location import Location
from router.nearness import orders
from router.placement import ExpertHolder, Placement
from router.spread import Assignment, Order, spread
from router.transport.base import WAIT_STEP_S
from router.transport.health import LaneInUse
from router.transport.stream import ReplicaStream

Connect = Callable[[ExpertHolder, Callable[[], None]], ReplicaStream]
"""(whom to connect to, what to call whenever the stream opens or breaks) -> a stream that connects."""


class ReplicaStreams:
    """One stream to each replica of the placement in force.

    Any thread may use it; `assign` is the step loop's alone.

    Args:
        connect: makes a stream.
        patience_s: how long those who choose wait at most, for messages.
        router_id: who we are among the placement's routers.
    """

    def __init__(self, connect: Connect, patience_s: float, router_id: str = "") -> None:
        self._connect = connect
        self._router_id = router_id
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._streams: dict[str, ReplicaStream] = {}
        self._placement = Placement(version=0, holders=())
        self._turns = itertools.count()
        self._ready: dict[int, Sequence[Order]] | None = None
        """Connected holders by expert, turn by turn, experts without any left out; None: to be made anew."""
        self._locations: dict[str, Location] = {}
        self._orders: dict[tuple[str, ...], Sequence[Order]] = {}
        """What was reckoned from distances, of each set of holders that occurred in this placement."""
        self._is_closed = False
        self.lacking: errors.NoReplica | None = None
        """What the step loop lacks, while it waits for a holder."""

    @property
    def placement(self) -> Placement:
        """Return the placement in force."""
        return self._placement

    def get(self, replica_id: str) -> ReplicaStream | None:
        """Return the stream to a replica, None when it left the placement."""
        return self._streams.get(replica_id)

    @property
    def lanes(self) -> dict[str, LaneInUse]:
        """Return how tensors travel to each replica with an open stream, by its name."""
        with self._changed:
            return {replica_id: stream.lane for replica_id, stream in self._streams.items() if stream.is_ready}

    def update(self, placement: Placement) -> None:
        """Put a newer placement in force: connect to new replicas, leave those that are gone."""
        locations = {holder.replica_id: holder.location for holder in placement.holders}
        # Here, and not in the step loop: with many routers it takes milliseconds.
        found = {each: self._reckon(each, placement, locations) for each in {*placement.replicas_by_expert.values()}}
        with self._changed:
            if self._is_closed or placement.version < self._placement.version:
                return
            wanted = {holder.replica_id: holder for holder in placement.holders}
            gone = [self._streams.pop(replica_id) for replica_id in set(self._streams) - set(wanted)]
            for replica_id, holder in wanted.items():
                if stream := self._streams.get(replica_id):
                    stream.holder = holder  # the same server; what it holds may have changed
                else:
                    self._streams[replica_id] = self._connect(holder, self._note_change)
            self._placement = placement
            self._locations, self._orders = locations, found
            self._ready = None
            self._changed.notify_all()
        for stream in gone:
            stream.close()

    def close(self) -> None:
        """Close every stream and wake whoever waits. Idempotent."""
        with self._changed:
            self._is_closed = True
            streams, self._streams = list(self._streams.values()), {}
            self._ready = None
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
        """Wait until a stream opens or breaks or the placement changes; tell whether that came in time."""
        with self._changed:
            return self._is_closed or self._changed.wait(timeout_s)

    def assign(
        self,
        token_counts: Mapping[int, int],
        *,
        avoid: Collection[str],
        give_up_at: float,
        on_wait: Callable[[], None],
    ) -> Assignment:
        """Spread tokens over connected holders of their experts; wait for one where there is none.

        Args:
            token_counts: by logical expert.
            avoid: replicas to name only if no other holder is connected.
            give_up_at: monotonic second until which to wait.
            on_wait: see `Transport.on_wait`.

        Raises:
            NoReplica: an expert had no holder in time, or the streams are closed.
        """
        ready = None if avoid else self._ready
        if ready is not None and ready.keys() >= token_counts.keys():
            return spread(token_counts, ready, next(self._turns))  # nearly always: and this is in every layer
        return self._assign_slowly(token_counts, avoid, give_up_at, on_wait)

    def _assign_slowly(
        self, token_counts: Mapping[int, int], avoid: Collection[str], give_up_at: float, on_wait: Callable[[], None]
    ) -> Assignment:
        """Look who is connected, and wait if need be."""
        try:
            while True:
                with self._changed:
                    if self._is_closed:
                        raise errors.NoReplica(
                            "expected streams to expert replicas, found them closed: the router stops, try another"
                        )
                    holders = self._holders(token_counts, avoid)
                    missing = [expert for expert, found in holders.items() if not found]
                    if not missing:
                        self._ready = self._all_ready()
                        return spread(token_counts, self._in_order(holders), next(self._turns))
                    self.lacking = self._no_holder(missing[0])
                    left_s = give_up_at - time.monotonic()
                    if left_s <= 0:
                        raise self.lacking
                    self._changed.wait(min(left_s, WAIT_STEP_S))
                on_wait()
        finally:
            self.lacking = None  # whoever asks later must not hear of a wait that is over

    def assign_elsewhere(self, token_counts: Mapping[int, int], *, avoid: Collection[str]) -> Assignment | None:
        """Give tokens to as few connected holders as can be, none of those to avoid; None where some expert has none.

        As few, because who asks has reason to doubt: with each replica that must answer, one that will not is likelier.
        """
        with self._changed:
            holders = {expert: self._ready_holders(expert, avoid) for expert in token_counts}
            if not all(holders.values()):
                return None
            turn = next(self._turns)
            of_all = [each for each in next(iter(holders.values())) if all(each in found for found in holders.values())]
            if not of_all:
                return spread(token_counts, self._in_order(holders), turn)
            orders_of_all = self._orders_of(tuple(of_all))
        chosen, _ = orders_of_all[turn % len(orders_of_all)][0]
        return {expert: ((chosen, count),) for expert, count in token_counts.items()}

    def _in_order(self, holders: Mapping[int, Sequence[str]]) -> dict[int, Sequence[Order]]:
        """Return by expert the orders in which to take its holders. To be called with the lock."""
        return {expert: self._orders_of(tuple(found)) for expert, found in holders.items()}

    def _orders_of(self, holders: tuple[str, ...]) -> Sequence[Order]:
        known = self._orders.get(holders)
        if known is None:
            known = self._orders[holders] = self._reckon(holders, self._placement, self._locations)
        return known

    def _reckon(
        self, holders: tuple[str, ...], placement: Placement, locations: Mapping[str, Location]
    ) -> Sequence[Order]:
        return orders(self._router_id, placement.routers, {each: locations[each] for each in holders})

    def _holders(self, experts: Iterable[int], avoid: Collection[str]) -> dict[int, Sequence[str]]:
        """Return the connected holders of each expert, those to avoid only where there are no others."""
        if not avoid:
            return {expert: self._ready_holders(expert) for expert in experts}
        return {expert: self._ready_holders(expert, avoid) or self._ready_holders(expert) for expert in experts}

    def _ready_holders(self, expert: int, avoid: Collection[str] = ()) -> list[str]:
        holders = self._placement.replicas_by_expert.get(expert, ())
        return [
            replica
            for replica in holders
            if replica not in avoid and (stream := self._streams.get(replica)) and stream.is_ready
        ]

    def _no_holder(self, expert: int) -> errors.NoReplica:
        known = self._placement.replicas_by_expert.get(expert, ())
        streams = [stream for replica in known if (stream := self._streams.get(replica)) is not None]
        failures = "; ".join(f"{s.holder.replica_id}: {s.failure}" for s in streams if s.failure is not None)
        return errors.NoReplica(
            f"expected a connected replica that holds expert {expert}, found none of {list(known)} connected within "
            f"{self._patience_s:g} s{failures and f' ({failures})'}: try again, and see `herd status` for the replicas"
        )

    def _all_ready(self) -> dict[int, Sequence[Order]]:
        experts = self._placement.replicas_by_expert
        return self._in_order({expert: ready for expert in experts if (ready := self._ready_holders(expert))})

    def _note_change(self) -> None:
        """Take note that a stream opened or broke, and wake whoever waits for one."""
        with self._changed:
            self._ready = None
            self._changed.notify_all()
