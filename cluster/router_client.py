"""How the front door sees the routers: one protocol, whether they run in this process or behind Ray Serve."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Protocol

from cluster.directory import Departures
from cluster.events import ClusterEvent
from cluster.layer_load import LayerLoad
from cluster.replica_roster import ReplicaInfo
from router.request import EngineEvent, EngineLoad, GenerationRequest
from router.transport.health import TransportHealth


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterLoad:
    """How busy one router replica is."""

    replica_id: str
    """Its name."""
    load: EngineLoad
    """What its engine reports."""
    pid: int = 0
    """Process id on its host."""
    dispatches: TransportHealth | None = None
    """What became of its dispatches to expert replicas; None where the experts are in its process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertReplicaInfo:
    """An expert replica as the directory sees it."""

    replica_id: str
    """Its name, new after every restart."""
    group: str
    """The expert group it serves."""
    address: str
    """Where routers reach it."""
    expert_ids: tuple[int, ...]
    """Logical experts it holds."""
    weight_bytes: int
    """Bytes of weights in its memory."""
    pid: int
    """Process id on its host."""
    host: str = ""
    """Machine it runs on."""
    home_ids: tuple[int, ...] = ()
    """The experts of its group; what it holds beyond are copies of others that are in demand."""
    tokens_per_s: dict[int, float] = field(default_factory=dict)
    """Tokens per second of each expert it holds, all layers together, as of its last heartbeat."""
    queue_s: float = 0.0
    """Seconds a dispatch waited there, mean, as of its last heartbeat."""
    compute_s: float = 0.0
    """Seconds a dispatch computed there, mean, as of its last heartbeat."""
    spare_bytes: int = 0
    """Bytes it has for copies of more experts."""
    registered_at_s: float | None = None
    """When it registered, in seconds since 1970; None where that is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementInfo:
    """Which replica holds which experts."""

    version: int
    """Grows with every change; 0 when the experts run inside the router."""
    expert_replicas: tuple[ExpertReplicaInfo, ...] = ()
    """Empty when the experts run inside the router."""
    events: tuple[ClusterEvent, ...] = ()
    """What happened to expert replicas lately, oldest first."""
    departures: Departures | None = None
    """Who went since the directory started; None: not known."""
    num_draining_nodes: int = 0
    """Ray nodes that drain now."""
    layer_load: LayerLoad | None = None
    """How busy the experts are layer by layer, all their copies together, by the last heartbeats; None: not known."""
    roster: tuple[ReplicaInfo, ...] = ()
    """The replicas of all deployments and their states; empty when everything is in one process."""
    roster_problem: str = ""
    """Why the roster may be old; empty: it is of this moment."""
    is_current: bool = True
    """False: the directory did not answer; this is who was there when it last did, without load or events."""


class RouterClient(Protocol):
    """Reaches the routers. Every method may raise ReplicaError; only `generate` raises RequestError."""

    def generate(self, request: GenerationRequest) -> AsyncGenerator[list[EngineEvent], None]:
        """Generate one sequence on some router.

        The first item comes as soon as a router has accepted the sequence and may be an empty list; a refusal
        (Overloaded, InvalidRequest, ContextTooLong, NoReplica) is raised in its place. The last item ends with
        `Ended`. Closing the generator at any point cancels the sequence. Whoever closes may itself be cancelled
        meanwhile, so the cancellation must be on its way before the clean-up awaits anything.
        """
        ...

    async def load(self) -> tuple[RouterLoad, ...]:
        """Return the load of every router replica that answers; empty where none runs and a sequence would start one.

        Raises:
            NoReplica: none answers, though one should.
        """
        ...

    async def describe(self) -> PlacementInfo:
        """Return where the experts are."""
        ...
