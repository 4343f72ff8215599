"""Brings the directory's changes to a router."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from cluster.directory import DirectorySnapshot, Follower, merge_placements, merge_shards
from cluster.directory_actor import find_directories
from cluster.names import APP, ROUTER
from router.context_shards.stream import ShardHolder
from router.placement import Placement

_LOG = logging.getLogger(__name__)
_POLL_S = 1.0
"""Longest time a question to the directory stays open: also how late the end of a lease may be seen."""
_RETRY_S = 0.2


class PlacementFeed:
    """A thread that follows the application's directory, over restarts of it.

    Args:
        on_change: called with each new placement, from the thread.
        on_shards: called with the context shards there are, likewise.
        follower: the router, which does not serve yet.
    """

    def __init__(
        self,
        on_change: Callable[[Placement], None],
        on_shards: Callable[[tuple[ShardHolder, ...]], None],
        follower: Follower,
    ) -> None:
        self._follower = follower
        self._on_change = on_change
        self._on_shards = on_shards
        self._shards: tuple[ShardHolder, ...] = ()
        self._placement = Placement(version=0, holders=())
        self._snapshot = DirectorySnapshot(version=0, is_settled=False, replicas=())
        self._directory: ActorHandle | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="placement-feed", daemon=True)

    @property
    def snapshot(self) -> DirectorySnapshot:
        """Return what the directory said last."""
        return self._snapshot

    def start(self) -> None:
        """Start following."""
        self._thread.start()

    def serving(self) -> None:
        """Let the directory know that the router takes requests now: the others reckon with its load from then on."""
        self._follower = replace(self._follower, is_serving=True)

    def stop(self) -> None:
        """Stop following. Blocks for up to a poll. Idempotent."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                if self._directory is None:
                    self._directory = find_directories(APP, ROUTER)[-1]
                question = self._directory.follow.remote(self._follower, self._snapshot.version, _POLL_S)
                found = ray.get(question, timeout=_POLL_S * 5)
            except (RayError, TimeoutError, IndexError) as error:  # IndexError: it is being restarted
                self._directory = None
                _LOG.warning("the directory does not answer, the last placement stays: %s", error)
                self._stopping.wait(_RETRY_S)
                continue
            if found.version != self._snapshot.version:
                self._snapshot = found
                self._placement = merge_placements(self._placement, found, self._follower.deployment)
                self._on_change(self._placement)
                self._shards = merge_shards(self._shards, found)
                self._on_shards(self._shards)
