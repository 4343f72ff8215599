"""What will run where, decided: `plan.py` derives it. Plain data, so that processes without torch can have it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cluster.autoscaling import Bounds
from cluster.config import ClusterConfig
from cluster.devices import Devices, most_routers
from cluster.names import LONG_ROUTER, ROUTER
from cluster.planner.assumptions import PROCESS_BYTES, RAY_BYTES
from models.config import ModelConfig
from router.kv_cache.layout import FloatDtype
from router.limits import EngineLimits

_MOST_SPARES = 2
"""Idle processes kept unless settings ask for more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolPlan:
    """Routers of one length class."""

    engine_limits: EngineLimits
    """What one of them takes on."""
    threads: int
    """CPU threads of one of them."""
    replicas: int
    """How many there are at first."""
    bounds: Bounds
    """How many there may be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeploymentPlan:
    """A Herd ready to be deployed. Plain data: it travels to every replica."""

    settings: ClusterConfig
    """What was asked for."""
    folder: Path
    """The model's folder, absolute."""
    model_name: str
    """What requests call the model."""
    fingerprint: str
    """Of the checkpoint the plan was made for."""
    config: ModelConfig
    """The model's architecture."""
    dtype: FloatDtype
    """What routers and experts compute in."""
    engine_limits: EngineLimits
    """What one router takes on, of those for long requests another than these."""
    expert_groups: tuple[tuple[int, ...], ...]
    """Logical experts of each group; empty for a dense model, and where routers hold all experts themselves."""
    router_threads: int
    """CPU threads of one router."""
    expert_threads: int
    """CPU threads of one expert replica."""
    weight_bytes: int
    """Bytes of all weights in main memory, with as many replicas as there may be."""
    devices: Devices = field(default_factory=Devices)
    """What routers and expert replicas compute on."""
    context_threads: int = 1
    """CPU threads of one context shard."""
    context_bytes: int = 0
    """Bytes of keys and values of one context shard."""
    segment_tokens: int = 0
    """Tokens that lie together on one shard; 0: there are no shards."""
    long: PoolPlan | None = None
    """Routers for long requests; None: all requests share the others."""
    by_role: bool = False
    """Whether each replica runs on a node that offers its role (`cluster.roles`), and has it to itself."""
    by_expert_group: bool = False
    """Whether an expert replica's node also offers its group's role: who makes the nodes says where copies may be."""
    spare_bytes: int = 0
    """Bytes of weights that an expert replica may take on beyond its group's: copies of experts that are in demand."""

    @property
    def experts_in_router(self) -> bool:
        """Tell whether each router holds all experts itself."""
        return self.config.is_moe and self.settings.experts.in_router

    @property
    def router_bounds(self) -> Bounds:
        """Return how many routers there may be, those for long requests left out."""
        return self.settings.scaling.routers(self.settings.router.replicas)

    @property
    def pools(self) -> dict[str, PoolPlan]:
        """Return the routers of every length class, by the name of their deployment."""
        standard = PoolPlan(
            engine_limits=self.engine_limits,
            threads=self.router_threads,
            replicas=self.settings.router.replicas,
            bounds=self.router_bounds,
        )
        return {ROUTER: standard} | ({} if self.long is None else {LONG_ROUTER: self.long})

    @property
    def context_length(self) -> int:
        """Return the most tokens of prompt and output together of any request."""
        return max(pool.engine_limits.context_length for pool in self.pools.values())

    @property
    def expert_bounds(self) -> Bounds:
        """Return how many replicas each expert group may have."""
        return self.settings.scaling.experts(self.settings.experts.replicas_per_group)

    @property
    def warm_spares(self) -> int:
        """Return how many idle processes each node keeps for replicas that start next."""
        if self.by_role and self.settings.experts.warm_spares is None:
            return 0  # replicas that start next have nodes of their own
        asked, bounds = self.settings.experts.warm_spares, self.expert_bounds
        return min(max(bounds.max_replicas - bounds.min_replicas, 1), _MOST_SPARES) if asked is None else asked

    @property
    def is_scaled(self) -> bool:
        """Tell whether any number of replicas may change."""
        routers = [pool.bounds for pool in self.pools.values()]
        shards = self.settings.context.bounds
        bounds = (*routers, self.expert_bounds, shards, self.settings.scaling.front_doors())
        return any(each.max_replicas > each.min_replicas for each in bounds)

    @property
    def num_replicas(self) -> int:
        """Count the processes with weights, as many as there may be."""
        routers = sum(pool.bounds.max_replicas for pool in self.pools.values())
        return routers + len(self.expert_groups) * self.expert_bounds.max_replicas

    @property
    def num_gpus(self) -> int:
        """Count the GPUs all processes take, with as many as there may be."""
        routers = most_routers(self.settings) if self.devices.router == "cuda" else 0
        experts = len(self.expert_groups) * self.expert_bounds.max_replicas if self.devices.experts == "cuda" else 0
        return routers + experts

    @property
    def needed_bytes(self) -> int:
        """Estimate the main memory all processes take, with as many as there may be."""
        limits = [(pool.engine_limits, pool.bounds.max_replicas) for pool in self.pools.values()]
        is_cpu = self.devices.router == "cpu"
        kv_bytes = sum((each.kv_bytes * is_cpu + each.host_kv_bytes) * replicas for each, replicas in limits)
        doors = self.settings.scaling.front_doors().max_replicas
        shards = self.settings.context.most_shards
        processes = self.num_replicas + doors + shards + self.warm_spares
        runtime_bytes = processes * int(PROCESS_BYTES.value) + int(RAY_BYTES.value)
        return self.weight_bytes + kv_bytes + shards * self.context_bytes + runtime_bytes
