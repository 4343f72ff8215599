"""Which router replica gets a call: the one it names, or the less busy of two."""

from __future__ import annotations

import random
from typing import Any

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

from cluster.ray_nodes import follow_draining_nodes

CARRY = "carry"
"""The one method whose calls name their router, in the first argument: its unique id."""
GENERATE = "generate"
"""The method whose third argument tells whether to be careful; any other call always is."""


class RouterChoice(RequestRouter):  # type: ignore[misc]  # Ray has no types here
    """Ray Serve asks this in the front door's process, once per call.

    Serve's own choice hands a replica to the call that waits longest, which may be another than it was chosen for;
    the base class does not.

    Serve asks a replica how busy it is before it sends a call there, and passes over one that does not answer. But it
    remembers the answer for ten seconds after the last call, so it would send to a replica that hangs; the more so as
    that one has nothing left to do once its sequences went elsewhere. A careful call makes it ask.

    Routers on nodes that drain get new calls only where there are no others.
    """

    _draining_nodes: frozenset[str] = frozenset()

    def initialize_state(self, **kwargs: Any) -> None:
        """Begin to know which nodes drain: Ray Serve calls this once, where calls are made."""

        def note(node_ids: frozenset[str]) -> None:
            self._draining_nodes = node_ids

        follow_draining_nodes(note)

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return one group of replicas, of which Serve takes the least busy; it asks again while there is none."""
        method, args = "", []
        if pending_request is not None:
            method, args = pending_request.metadata.call_method, pending_request.args
        if method == CARRY:
            named = [each for each in candidate_replicas if each.replica_id.unique_id == args[0]]
            # One that has left or died cannot be reached this way any more: whoever gets the call says that.
            return [named or candidate_replicas[:1]]
        stay = [each for each in candidate_replicas if each.node_id not in self._draining_nodes] or candidate_replicas
        chosen = random.sample(stay, min(2, len(stay)))
        if method != GENERATE or args[2]:
            for each in chosen:
                self.on_replica_actor_unavailable(each.replica_id)
        return [chosen]
