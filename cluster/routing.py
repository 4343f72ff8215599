"""Which router replica gets a call: the one it names, or the less busy of two."""

from __future__ import annotations

import random

from ray.serve.request_router import PendingRequest, RequestRouter, RunningReplica

CARRY = "carry"
"""The one method whose calls name their router, in the first argument: its unique id."""


class RouterChoice(RequestRouter):  # type: ignore[misc]  # Ray has no types here
    """Ray Serve asks this in the front door's process, once per call.

    Serve's own choice hands a replica to the call that waits longest, which may be another than it was chosen for;
    the base class does not.
    """

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Return one group of replicas, of which Serve takes the least busy; it asks again while there is none."""
        if pending_request is not None and pending_request.metadata.call_method == CARRY:
            named = [each for each in candidate_replicas if each.replica_id.unique_id == pending_request.args[0]]
            return [named]
        return [random.sample(candidate_replicas, min(2, len(candidate_replicas)))]
