"""Asks Ray Serve's controller which replicas there are."""

from __future__ import annotations

import asyncio

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from cluster.replica_roster import ServeReplica, read_details
from cluster.shared_answer import SharedAnswer
from protos.errors import ReplicaUnavailable

_MAX_AGE_S = 0.5
_DEADLINE_S = 0.5
"""Seconds the controller has: it needs 3 ms for a dozen replicas (AMD EPYC, 2026-11-21)."""


class ServeReplicas:
    """What the controller says, asked for no more than twice a second and only when somebody wants to know.

    Belongs to one event loop.

    Args:
        app: name of the application.
    """

    def __init__(self, app: str) -> None:
        self._app = app
        self._controller: ActorHandle | None = None
        self._answer: SharedAnswer[tuple[ServeReplica, ...]] = SharedAnswer(self._ask)

    async def get(self) -> tuple[ServeReplica, ...]:
        """Return the replicas of the application.

        Raises:
            ReplicaUnavailable: the controller does not answer in time; it is being restarted.
        """
        return (await self._answer.get(_MAX_AGE_S)).value

    async def _ask(self) -> tuple[ServeReplica, ...]:
        try:
            if self._controller is None:
                self._controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
            async with asyncio.timeout(_DEADLINE_S):
                details = await self._controller.get_serve_instance_details.remote()
        except (RayError, TimeoutError, ValueError) as error:  # ValueError: there is no such actor
            self._controller = None
            raise ReplicaUnavailable(
                "expected Ray Serve's controller to answer, found it silent: it is being restarted"
            ) from error
        return read_details(details, self._app)
