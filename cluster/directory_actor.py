"""The directory as a Ray actor: one per version of the Router deployment, started and watched by Ray Serve."""

from __future__ import annotations

import time

import ray
from ray.actor import ActorHandle
from ray.serve._private.constants import SERVE_DEPLOYMENT_ACTOR_PREFIX, SERVE_NAMESPACE
from ray.serve.config import DeploymentActorConfig

from cluster.directory import Directory, DirectorySnapshot, ExpertReplica
from cluster.startup_board import ReplicaProgress, StartupBoard

NAME = "directory"
"""Name of the actor within its deployment."""


class DirectoryActor:
    """A Directory with a clock, and the StartupBoard. Its methods are called from other processes.

    Args:
        lease_s: seconds a registration lasts without renewal.
    """

    def __init__(self, lease_s: float) -> None:
        # Versions must grow over restarts: routers ignore an older placement.
        first_version = int(time.time() * 1000)
        self._directory = Directory(lease_s=lease_s, first_version=first_version, now=time.monotonic())
        self._board = StartupBoard()

    async def register(self, replica: ExpertReplica) -> None:
        """Add an expert replica."""
        self._directory.register(replica, time.monotonic())

    async def renew(self, replica_id: str) -> bool:
        """Extend a replica's lease; tell whether it is known."""
        return self._directory.renew(replica_id, time.monotonic())

    async def deregister(self, replica_id: str) -> None:
        """Take a replica out."""
        self._directory.deregister(replica_id)

    async def wait_for_change(self, version: int, timeout_s: float) -> DirectorySnapshot:
        """Return the state once it is not that version, at the latest after `timeout_s`."""
        self._directory.advance(time.monotonic())
        await self._directory.wait_for_change(version, timeout_s)
        self._directory.advance(time.monotonic())
        return self._directory.snapshot()

    async def report(self, progress: ReplicaProgress) -> None:
        """Note how far a replica has come."""
        self._board.report(progress)

    async def progress(self) -> tuple[ReplicaProgress, ...]:
        """Return how far every replica has come."""
        return self._board.progress()


def directory_config(lease_s: float) -> DeploymentActorConfig:
    """Return what makes Ray Serve start a directory with a deployment."""
    return DeploymentActorConfig(
        name=NAME,
        actor_class=ray.remote(DirectoryActor),
        init_kwargs={"lease_s": lease_s},
        actor_options={"num_cpus": 0},
    )


def find_directories(app: str, deployment: str) -> list[ActorHandle]:
    """Return every directory of a deployment: two for a moment when it is replaced, none while it restarts.

    Args:
        app: name of the application.
        deployment: whose actor the directory is.
    """
    prefix = f"{SERVE_DEPLOYMENT_ACTOR_PREFIX}{app}::{deployment}::"
    found = []
    for actor in ray.util.list_named_actors(all_namespaces=True):
        name = actor["name"]
        if actor["namespace"] == SERVE_NAMESPACE and name.startswith(prefix) and name.endswith(f"::{NAME}"):
            try:
                found.append(ray.get_actor(name, namespace=SERVE_NAMESPACE))
            except ValueError:
                continue  # it ended since it was listed
    return found
