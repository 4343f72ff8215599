"""Asks Ray Serve's controller which replicas there are."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import suppress

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from cluster.replica_roster import ServeReplica, read_details
from cluster.shared_answer import SharedAnswer
from protos.errors import ReplicaUnavailable

_MAX_AGE_S = 0.5
_PATIENCE_S = 0.3
"""Seconds to wait for an answer before the last one is told instead: it takes 3 ms on an idle machine."""
_DEADLINE_S = 5.0
"""Seconds the controller has altogether: on a busy machine it may take one or two."""
_OLD_S = 3.0


class ServeReplicas:
    """What the controller says, asked for no more than twice a second and only when somebody wants to know.

    Belongs to one event loop.

    Args:
        app: name of the application.
    """

    def __init__(self, app: str) -> None:
        self._app = app
        self._controller: ActorHandle | None = None
        self._answer: SharedAnswer[None] = SharedAnswer(self._ask)
        self._replicas: tuple[ServeReplica, ...] = ()
        self._heard_at = -math.inf

    async def get(self) -> tuple[tuple[ServeReplica, ...], str]:
        """Return the replicas of the application as they were told last, and why that is old; empty: it is not."""
        with suppress(ReplicaUnavailable, TimeoutError):
            async with asyncio.timeout(_PATIENCE_S):
                await self._answer.get(_MAX_AGE_S)
        if time.monotonic() - self._heard_at < _OLD_S:
            return self._replicas, ""
        return self._replicas, "expected Ray Serve's controller to answer, found it silent: it is being restarted"

    async def _ask(self) -> None:
        try:
            if self._controller is None:
                self._controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
            async with asyncio.timeout(_DEADLINE_S):
                details = await self._controller.get_serve_instance_details.remote()
        except (RayError, TimeoutError, ValueError) as error:  # ValueError: there is no such actor
            self._controller = None
            raise ReplicaUnavailable("expected Ray Serve's controller to answer, found it silent; ask again") from error
        self._replicas, self._heard_at = read_details(details, self._app), time.monotonic()
