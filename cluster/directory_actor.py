"""The directory as a Ray actor: one per version of the Router deployment, started and watched by Ray Serve."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import ray
from ray.actor import ActorHandle
from ray.serve._private.constants import SERVE_DEPLOYMENT_ACTOR_PREFIX, SERVE_NAMESPACE
from ray.serve.config import DeploymentActorConfig

from cluster.config import ClusterConfig
from cluster.directory import ContextReplica, Departures, Directory, DirectorySnapshot, ExpertReplica, Follower
from cluster.early_drain import EarlyDrain, is_in_kubernetes
from cluster.events import ClusterEvent
from cluster.names import APP
from cluster.own_location import domains_of
from cluster.placement_load import ReplicaReport
from cluster.ray_nodes import ON_HEAD, follow_draining_nodes
from cluster.rebalancer import Rebalancer
from cluster.replica_roster import ReplicaInfo, replica_roster
from cluster.serve_replicas import ServeReplicas
from cluster.startup_board import ReplicaProgress, StartupBoard

NAME = "directory"
"""Name of the actor within its deployment."""
_TICK_S = 0.5
_STOOD_STILL_S = 1.0
"""A pause between two looks at the clock that is so much longer than it should be means that this process was stopped,
or got no processor. Heartbeats wait in its queue then, and must not come too late by that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectoryOverview:
    """The directory as people want to see it."""

    snapshot: DirectorySnapshot
    """Who is registered."""
    reports: Mapping[str, ReplicaReport]
    """By replica, what it said last."""
    events: tuple[ClusterEvent, ...]
    """What happened lately, oldest first."""
    departures: Departures | None = None
    """Who went; None: the directory did not say."""
    roster: tuple[ReplicaInfo, ...] = ()
    """The replicas of all deployments."""
    roster_problem: str = ""
    """Why the roster may be old; empty: it is of this moment."""


class DirectoryActor:
    """A Directory with a clock, and the StartupBoard. Its methods are called from other processes.

    Args:
        lease_s: seconds a registration lasts without renewal.
        watches_kubernetes: whether, in Kubernetes, to drain nodes whose end is foretold.
        near_labels: labels of nodes whose equal values mean near.
    """

    def __init__(self, lease_s: float, watches_kubernetes: bool, near_labels: tuple[str, ...]) -> None:
        self._near_labels = near_labels
        self._watches_kubernetes = watches_kubernetes and is_in_kubernetes()
        # Versions must grow over restarts: routers ignore an older placement.
        first_version = int(time.time() * 1000)
        self._directory = Directory(lease_s=lease_s, first_version=first_version, now=time.monotonic())
        self._looked_at = time.monotonic()
        self._ticking: asyncio.Task[None] | None = None
        self._board = StartupBoard()
        self._serve_replicas = ServeReplicas(APP)
        self._rebalancer = Rebalancer()

    async def register(self, replica: ExpertReplica) -> None:
        """Add an expert replica."""
        self._directory.register(replica, self._now())

    async def register_shard(self, shard: ContextReplica) -> None:
        """Add a context shard."""
        self._directory.register_shard(shard, self._now())

    async def renew(self, replica_id: str) -> bool:
        """Extend a context shard's lease; tell whether it is known. One that is not has to register."""
        return self._directory.renew(replica_id, self._now())

    async def heartbeat(self, report: ReplicaReport) -> frozenset[int] | None:
        """Extend a replica's lease; return the experts it should hold, None if it is not known and has to register."""
        now = self._now()
        if not self._directory.renew(report.replica_id, now):
            return None
        self._rebalancer.hear(report)
        snapshot = self._directory.snapshot()
        if snapshot.is_settled:  # before, replicas may be missing that have the load of others
            for replica_id, (added, dropped) in self._rebalancer.decide(snapshot.replicas, now).items():
                self._note_decision(replica_id, added, dropped)
        wanted = self._rebalancer.wanted(report.replica_id)
        return report.held if wanted is None else wanted

    async def overview(self) -> DirectoryOverview:
        """Return the replicas, what they report and what happened lately."""
        replicas, problem = await self._serve_replicas.get()
        now = self._now()
        self._directory.advance(now)
        snapshot = self._directory.snapshot()
        heard = {each.holder.replica_id for each in snapshot.replicas} if snapshot.is_settled else None
        return DirectoryOverview(
            snapshot=snapshot,
            reports=dict(self._rebalancer.reports),
            events=self._directory.events.newest(),
            departures=replace(self._directory.departures),
            roster=replica_roster(replicas, self._board.entries(now), heard, time.time()),
            roster_problem=problem,
        )

    async def deregister(self, replica_id: str) -> None:
        """Take a replica out."""
        self._directory.deregister(replica_id)

    async def follow(self, follower: Follower, version: int, timeout_s: float) -> DirectorySnapshot:
        """Return the state to a router once it is not that version, at the latest after `timeout_s`."""
        now = self._now()
        self._directory.advance(now)
        self._directory.followed(follower, now)
        await self._directory.wait_for_change(version, timeout_s)
        self._directory.advance(self._now())
        return self._directory.snapshot()

    def _now(self) -> float:
        """Return the time, after making up for any in which this process stood still."""
        now = time.monotonic()
        if self._ticking is None:  # the first call: nobody looked at the clock before
            self._ticking = asyncio.create_task(self._tick())
            self._looked_at = now
            self._look_after_nodes(asyncio.get_running_loop())
        stood_still_s = now - self._looked_at - _TICK_S
        if stood_still_s > _STOOD_STILL_S:
            self._directory.thaw(stood_still_s)
            self._directory.events.note(NAME, f"stood still for {stood_still_s:.1f} s")
        self._looked_at = now
        return now

    def _look_after_nodes(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start the threads that know which nodes are about to go; they end with this process."""
        follow_draining_nodes(lambda node_ids: _from_thread(loop, self._directory.drain, node_ids))
        if self._watches_kubernetes:
            EarlyDrain(
                lambda name, text: _from_thread(loop, self._directory.events.note, name, text),
                labels=self._near_labels,
                on_labels=lambda labels: _from_thread(loop, self._know_labels, labels),
            ).start()

    def _know_labels(self, labels: Mapping[str, Mapping[str, str]]) -> None:
        self._directory.know_machines({each: domains_of(found, self._near_labels) for each, found in labels.items()})

    async def _tick(self) -> None:
        """Look at the clock so often that a longer pause can only be this process's own."""
        while True:
            await asyncio.sleep(_TICK_S)
            self._now()

    def _note_decision(self, replica_id: str, added: frozenset[int], dropped: frozenset[int]) -> None:
        for expert in sorted(added):
            self._directory.events.note(replica_id, f"is to hold a copy of expert {expert}")
        for expert in sorted(dropped):
            self._directory.events.note(replica_id, f"is to drop its copy of expert {expert}")

    async def report(self, progress: ReplicaProgress) -> None:
        """Note how far a replica has come."""
        startup = progress.startup
        if startup is not None and startup.ready_s is not None and startup.first_dispatch_s is not None:
            self._directory.events.note(progress.replica_id, f"started: {startup.described()}")
        self._board.report(progress, self._now())

    async def progress(self) -> tuple[ReplicaProgress, ...]:
        """Return how far every replica has come."""
        return self._board.progress(self._now())


def _from_thread(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *args: object) -> None:
    with suppress(RuntimeError):  # the loop has ended, and with it who would want to know
        loop.call_soon_threadsafe(call, *args)


def directory_config(settings: ClusterConfig) -> DeploymentActorConfig:
    """Return what makes Ray Serve start a directory with a deployment."""
    kubernetes = settings.kubernetes
    return DeploymentActorConfig(
        name=NAME,
        actor_class=ray.remote(DirectoryActor),
        init_kwargs={
            "lease_s": settings.experts.lease_s,
            "watches_kubernetes": kubernetes.watch,
            "near_labels": kubernetes.domains,
        },
        # An actor that asks for nothing is put on any node. Where pods come and go, it would keep one from going.
        actor_options={"num_cpus": 0, "resources": ON_HEAD},
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
