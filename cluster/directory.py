"""Which replica holds which experts, and which context shards there are: leases and versions, without Ray or a clock.

    register -> renew, renew, ... -> deregister
                      `- no renewal for a lease -> expire

A directory that was just started knows nobody yet. Until it has settled, one lease later, what it lacks means nothing:
its readers keep what they knew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from cluster.events import Events
from router.context_shards.stream import ShardHolder
from router.location import Location
from router.placement import ExpertHolder, Placement


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertReplica:
    """A replica as it registers."""

    holder: ExpertHolder
    """What routers need to reach it."""
    group: str
    """The expert group it serves."""
    home_ids: tuple[int, ...]
    """The experts of its group: once it has loaded, it holds them as long as it lives."""
    weight_bytes: int
    """Bytes of weights in its memory."""
    pid: int
    """Process id on its host."""
    registered_at_s: float | None = None
    """When it began to serve, in seconds since 1970."""
    node_id: str = ""
    """Ray's name for its node; empty: not known."""

    def holding(self, expert_ids: tuple[int, ...], weight_bytes: int) -> ExpertReplica:
        """Return the replica as it registers once it holds these experts, ascending."""
        return replace(self, holder=replace(self.holder, expert_ids=expert_ids), weight_bytes=weight_bytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class ContextReplica:
    """A context shard as it registers."""

    holder: ShardHolder
    """What routers need to reach it."""
    total_tokens: int
    """Tokens whose keys and values it can hold."""
    pid: int
    """Process id on its host."""
    host: str
    """Name of its machine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Follower:
    """A router that follows the directory."""

    router_id: str
    """Unique in the cluster."""
    deployment: str
    """The deployment it belongs to, whose routers have the same load."""
    location: Location
    """Where it runs."""
    node_id: str = ""
    """Ray's name for its node; empty: not known."""
    is_serving: bool = False
    """Whether it has started, and takes requests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DirectorySnapshot:
    """The directory at one version."""

    version: int
    """Grows with every change, over restarts of the directory too."""
    is_settled: bool
    """False: replicas may be missing that are well."""
    replicas: tuple[ExpertReplica, ...]
    """In the order they came."""
    shards: tuple[ContextReplica, ...] = ()
    """Context shards, likewise."""
    draining_nodes: frozenset[str] = frozenset()
    """Ray's names for the nodes that are about to go."""
    followers: tuple[Follower, ...] = ()
    """Routers."""

    def placement(self) -> Placement:
        """Return the part a router needs: replicas about to go with their nodes are left what nobody else holds."""
        going = [each for each in self.replicas if each.node_id and each.node_id in self.draining_nodes]
        stay = [each for each in self.replicas if each not in going]
        held = {expert for each in stay for expert in each.holder.expert_ids}
        left = [
            replace(each.holder, expert_ids=tuple(expert for expert in each.holder.expert_ids if expert not in held))
            for each in going
        ]
        holders = [*(each.holder for each in stay), *(each for each in left if each.expert_ids)]
        return Placement(version=self.version, holders=tuple(holders))

    def routers_of(self, deployment: str) -> dict[str, Location]:
        """Return where a deployment's routers with load are, by name: not those that start, or are about to go."""
        return {
            each.router_id: each.location
            for each in self.followers
            if each.deployment == deployment and each.is_serving and each.node_id not in self.draining_nodes
        }

    def holder_of(self, expert: int, asker: str) -> str | None:
        """Return the address of a replica to copy an expert from, None where nobody else holds it.

        Experts are spread over all that hold them, for a replica serves one copier at a time.
        """
        holders = [replica.holder for replica in self.replicas if expert in replica.holder.expert_ids]
        addresses = sorted(holder.address for holder in holders if holder.replica_id != asker)
        return addresses[expert % len(addresses)] if addresses else None


@dataclass(kw_only=True, slots=True)
class Departures:
    """Who went since the directory started."""

    left: int = 0
    """Replicas and shards that ended as they were told to."""
    lost: int = 0
    """Those of which no heartbeat came any more."""
    drained_nodes: int = 0
    """Nodes that began to drain."""


class Directory:
    """The registered expert replicas and context shards. Belongs to one event loop.

    Args:
        lease_s: seconds a registration or renewal lasts.
        first_version: larger than any version of an earlier directory.
        now: seconds on a monotonic clock, as in every `now` here.
    """

    def __init__(self, *, lease_s: float, first_version: int, now: float) -> None:
        self._lease_s = lease_s
        self._version = first_version
        self._settles_at = now + lease_s
        self._is_settled = False
        self._replicas: dict[str, ExpertReplica] = {}
        self._shards: dict[str, ContextReplica] = {}
        self._expires_at: dict[str, float] = {}
        self._draining_nodes: frozenset[str] = frozenset()
        self._followers: dict[str, Follower] = {}
        self._followed_until: dict[str, float] = {}
        self._domains: Mapping[str, tuple[str, ...]] = {}
        self._changed = asyncio.Event()
        self.events = Events()
        """What became of replicas."""
        self.departures = Departures()

    def register(self, replica: ExpertReplica, now: float) -> None:
        """Add a replica, or replace the one of that id."""
        replica_id = replica.holder.replica_id
        self._expires_at[replica_id] = now + self._lease_s
        replica = self._located(replica)
        known = self._replicas.get(replica_id)
        if known != replica:
            self._note_registered(known, replica)
            self._replicas[replica_id] = replica
            self._bump()

    def register_shard(self, shard: ContextReplica, now: float) -> None:
        """Add a context shard."""
        shard_id = shard.holder.shard_id
        self._expires_at[shard_id] = now + self._lease_s
        if self._shards.get(shard_id) != shard:
            self.events.note(shard_id, f"holds context, {shard.total_tokens:,} tokens at most")
            self._shards[shard_id] = shard
            self._bump()

    def renew(self, replica_id: str, now: float) -> bool:
        """Extend the lease of a replica or shard; tell whether it is known. One that is not has to register."""
        self.advance(now)
        if replica_id not in self._expires_at:
            return False
        self._expires_at[replica_id] = now + self._lease_s
        return True

    def deregister(self, replica_id: str) -> None:
        """Take out a replica or shard that ends. Idempotent."""
        if replica_id in self._expires_at:
            self.departures.left += 1
            self._take_out(replica_id, "left")

    def _take_out(self, replica_id: str, reason: str) -> None:
        del self._expires_at[replica_id]
        self._replicas.pop(replica_id, None)
        self._shards.pop(replica_id, None)
        self.events.note(replica_id, reason)
        self._bump()

    def drain(self, node_ids: frozenset[str]) -> None:
        """Take note of all nodes that are about to go, by Ray's names: others take the work of replicas there."""
        if node_ids != self._draining_nodes:
            self.departures.drained_nodes += len(node_ids - self._draining_nodes)
            self._draining_nodes = node_ids
            self._bump()

    def followed(self, follower: Follower, now: float) -> None:
        """Take note of a router that asks for changes, for as long as a lease."""
        self._followed_until[follower.router_id] = now + self._lease_s
        follower = replace(follower, location=self._with_domains(follower.location))
        if self._followers.get(follower.router_id) != follower:
            self._followers[follower.router_id] = follower
            self._bump()

    def know_machines(self, domains: Mapping[str, tuple[str, ...]]) -> None:
        """Take note of what machines belong to, by name: it completes what replicas and routers say of theirs."""
        if domains == self._domains:
            return
        self._domains = domains
        replicas = {each: self._located(replica) for each, replica in self._replicas.items()}
        followers = {
            each: replace(follower, location=self._with_domains(follower.location))
            for each, follower in self._followers.items()
        }
        if (replicas, followers) != (self._replicas, self._followers):
            self._replicas, self._followers = replicas, followers
            self._bump()

    def _located(self, replica: ExpertReplica) -> ExpertReplica:
        location = self._with_domains(replica.holder.location)
        return replace(replica, holder=replace(replica.holder, location=location))

    def _with_domains(self, location: Location) -> Location:
        known = self._domains.get(location.machine, ())
        if len(known) != len(location.domains):
            return location
        own = tuple(mine or other for mine, other in zip(location.domains, known, strict=True))
        return replace(location, domains=own)

    def advance(self, now: float) -> None:
        """Let time pass: take out replicas whose lease has ended, and settle."""
        gone = {each for each, until in self._followed_until.items() if now >= until}
        if gone:
            self._followed_until = {each: until for each, until in self._followed_until.items() if each not in gone}
            self._followers = {each: follower for each, follower in self._followers.items() if each not in gone}
            self._bump()
        for replica_id in [each for each, expires_at in self._expires_at.items() if now >= expires_at]:
            self.departures.lost += 1
            self._take_out(replica_id, "lost: no heartbeat came any more")
        if not self._is_settled and now >= self._settles_at:
            self._is_settled = True
            self._bump()

    def thaw(self, seconds: float) -> None:
        """Extend every lease by a time in which nobody could be heard: this process stood still, not the replicas."""
        self._expires_at = {each: expires_at + seconds for each, expires_at in self._expires_at.items()}
        self._followed_until = {each: until + seconds for each, until in self._followed_until.items()}
        self._settles_at += seconds

    def snapshot(self) -> DirectorySnapshot:
        """Return the present state."""
        return DirectorySnapshot(
            version=self._version,
            is_settled=self._is_settled,
            replicas=tuple(self._replicas.values()),
            shards=tuple(self._shards.values()),
            draining_nodes=self._draining_nodes,
            followers=tuple(self._followers.values()),
        )

    async def wait_for_change(self, version: int, timeout_s: float) -> DirectorySnapshot:
        """Return the state once its version is not `version`, or after `timeout_s` as it is."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._version == version:
                    await self._changed.wait()
        except TimeoutError:
            pass
        return self.snapshot()

    def _note_registered(self, known: ExpertReplica | None, replica: ExpertReplica) -> None:
        replica_id = replica.holder.replica_id
        if known is None:
            self.events.note(replica_id, f"serves {replica.group}")
            return
        # Those of its group come while it starts, a few at a time.
        before, after = (set(each.holder.expert_ids) - set(replica.home_ids) for each in (known, replica))
        for expert in sorted(after - before):
            self.events.note(replica_id, f"serves a copy of expert {expert}")
        for expert in sorted(before - after):
            self.events.note(replica_id, f"gives up its copy of expert {expert}")

    def _bump(self) -> None:
        self._version += 1
        # Whoever waits has this event; the next ones get a new one.
        self._changed.set()
        self._changed = asyncio.Event()


def merge_placements(known: Placement, found: DirectorySnapshot, deployment: str) -> Placement:
    """Return what a router should use: what the directory says, and what it does not say while it has not settled.

    Args:
        known: what it used so far.
        found: what the directory says.
        deployment: the router's. Routers of others may have no load, and would leave the replicas beside them idle.
    """
    placement = found.placement()
    if found.is_settled:
        return replace(placement, routers=found.routers_of(deployment))
    # Some of the routers alone would seem to have the replicas beside them to themselves: none are named.
    listed = {holder.replica_id for holder in placement.holders}
    kept = tuple(holder for holder in known.holders if holder.replica_id not in listed)
    return Placement(version=placement.version, holders=placement.holders + kept)


def merge_shards(known: tuple[ShardHolder, ...], found: DirectorySnapshot) -> tuple[ShardHolder, ...]:
    """Return the context shards that a router should know, likewise."""
    listed = tuple(shard.holder for shard in found.shards)
    if found.is_settled:
        return listed
    return listed + tuple(holder for holder in known if holder.shard_id not in {each.shard_id for each in listed})
