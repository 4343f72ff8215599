"""Brings what a replica holds to what the directory wants of it, one expert at a time, while it serves.

    add    load  ->  announce  ->  routers send
    drop   announce  ->  routers send elsewhere  ->  release

So at no moment is a replica announced for what it does not have, and a dispatch that was on its way is still answered.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from cluster.directory import ExpertReplica
from experts.replica import Replica
from protos.errors import ServingError

_LOG = logging.getLogger(__name__)
_FORWARD_S = 2.0
"""Seconds that routers have to hear of an expert's leaving before it is released. One that is later still is told that
the placement is stale, and sends its tokens elsewhere."""


class Holdings:
    """A thread that loads and releases. `want` may be called from any thread.

    Args:
        replica: what holds the experts.
        registered: as it was registered first.
        announce: tells the directory of a change; may block for seconds.
        forward_s: see `_FORWARD_S`.
    """

    def __init__(
        self,
        replica: Replica,
        registered: ExpertReplica,
        announce: Callable[[ExpertReplica], None],
        forward_s: float = _FORWARD_S,
    ) -> None:
        self._replica = replica
        self._registered = registered
        self._announce = announce
        self._forward_s = forward_s
        self._changed = threading.Condition()
        self._wanted = frozenset(registered.holder.expert_ids)
        self._failed: frozenset[int] = frozenset()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="holdings", daemon=True)

    def start(self) -> None:
        """Start to follow what is wanted."""
        self._thread.start()

    def want(self, expert_ids: frozenset[int]) -> None:
        """Take note of the experts that the replica should hold from now on. Never blocks on loading."""
        with self._changed:
            if expert_ids != self._wanted:
                self._wanted, self._failed = expert_ids, frozenset()
                self._changed.notify()

    def stop(self) -> None:
        """Follow no longer. Blocks while an expert loads. Idempotent."""
        with self._changed:
            self._stopping.set()
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while (step := self._next_step()) is not None:
            step()

    def _next_step(self) -> Callable[[], None] | None:
        """Wait for something to do; None once stopped."""
        with self._changed:
            while not self._stopping.is_set():
                held = set(self._registered.holder.expert_ids)
                if missing := sorted(self._wanted - held - self._failed):
                    return lambda: self._add(missing[0])
                if surplus := sorted(held - self._wanted - set(self._registered.home_ids)):
                    return lambda: self._drop(surplus[0])
                self._changed.wait()
        return None

    def _add(self, expert: int) -> None:
        try:
            self._replica.hold([expert])
        except ServingError as error:
            _LOG.warning("could not hold a copy of expert %d: %s", expert, error)
            with self._changed:
                self._failed |= {expert}
            return
        _LOG.info("holds a copy of expert %d", expert)
        self._tell((*self._registered.holder.expert_ids, expert))

    def _drop(self, expert: int) -> None:
        self._tell(tuple(each for each in self._registered.holder.expert_ids if each != expert))
        self._stopping.wait(self._forward_s)
        try:
            self._replica.release([expert])
        except ServingError as error:
            _LOG.warning("could not release expert %d: %s", expert, error)
        _LOG.info("dropped its copy of expert %d", expert)

    def _tell(self, expert_ids: tuple[int, ...]) -> None:
        self._registered = self._registered.holding(tuple(sorted(expert_ids)), self._replica.held.weight_bytes)
        self._announce(self._registered)
