"""Asks the directory itself: it answers also while there is no router that could be asked instead."""

from __future__ import annotations

import asyncio

from ray.actor import ActorHandle
from ray.exceptions import RayError

from cluster.directory_actor import DirectoryOverview, find_directories
from protos.errors import ReplicaUnavailable

_DEADLINE_S = 1.5
"""Seconds it has, so that `limits.health_timeout_s` leaves some to ask a router."""


class DirectoryClient:
    """Reaches the directory from a front door. Belongs to one event loop.

    Args:
        app: name of the application.
        deployment: whose directory.
    """

    def __init__(self, app: str, deployment: str) -> None:
        self._app = app
        self._deployment = deployment
        self._directory: ActorHandle | None = None

    async def overview(self) -> DirectoryOverview:
        """Return what the directory knows.

        Raises:
            ReplicaUnavailable: it does not answer in time, or there is none at this moment.
        """
        try:
            async with asyncio.timeout(_DEADLINE_S):
                if self._directory is None:
                    # Looking for it blocks, and nothing else here may.
                    found = await asyncio.to_thread(find_directories, self._app, self._deployment)
                    self._directory = found[-1]
                answer: DirectoryOverview = await self._directory.overview.remote()
        except (RayError, TimeoutError, IndexError) as error:  # IndexError: none was found
            self._directory = None
            raise ReplicaUnavailable(
                f"expected the directory to answer within {_DEADLINE_S:g} s, found it silent: it is being restarted"
            ) from error
        return answer
