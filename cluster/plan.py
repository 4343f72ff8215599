"""What will run where: every derived value, from the settings, the model and the machine. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from cluster.autoscaling import Bounds
from cluster.byte_text import format_bytes
from cluster.config import ClusterConfig
from cluster.devices import Devices, choose_devices, has_expert_replicas, most_replicas_per_group, most_routers
from cluster.expert_groups import group_experts
from cluster.gpu_room import usable_bytes
from cluster.machine import Machine
from cluster.names import LONG_ROUTER, ROUTER
from cluster.planner import assumptions
from cluster.planner.workspace import expert_workspace
from cluster.pool_plan import PoolPlan, context_bytes, long_pool, standard_limits
from cluster.role_memory import all_gpus, check_machines, replica_bytes
from cluster.roles import CONTEXT_ROLE, EXPERTS_ROLE
from cluster.weight_bytes import WeightBytes
from models.checkpoint import Checkpoint
from models.config import ModelConfig
from protos.device_memory import DEVICE_SEGMENT_BYTES
from protos.errors import BadConfig, NotEnoughMemory
from router.limits import EngineLimits

PROCESS_BYTES = int(assumptions.PROCESS_BYTES.value)
RAY_BYTES = int(assumptions.RAY_BYTES.value)
_MOST_SPARES = 2
"""Idle processes kept unless settings ask for more."""


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
    dtype: torch.dtype
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
    def dtype_name(self) -> str:
        """Return the dtype's name, for example float32."""
        return str(self.dtype).removeprefix("torch.")

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
        processes = (self.num_replicas + doors + shards + self.warm_spares) * PROCESS_BYTES + RAY_BYTES
        return self.weight_bytes + kv_bytes + shards * self.context_bytes + processes


def make_plan(
    settings: ClusterConfig,
    checkpoint: Checkpoint,
    name: str,
    machine: Machine,
    *,
    by_role: Mapping[str, Machine] | None = None,
) -> DeploymentPlan:
    """Derive everything that the settings leave open.

    Args:
        settings: checked.
        checkpoint: the model's.
        name: what to call the model where the settings do not say.
        machine: where it will run; a router's, where roles have machines of their own.
        by_role: a machine of each role there is, which one replica has to itself; None: all share `machine`.

    Raises:
        BadConfig: the settings do not fit the model or the machine.
        NotEnoughMemory: the machine is too small.
    """
    config = checkpoint.config
    groups: tuple[tuple[int, ...], ...] = ()
    if has_expert_replicas(settings, config):
        groups = group_experts(config.num_experts, settings.experts.groups)
    num_expert_replicas = len(groups) * settings.experts.replicas_per_group
    gpus = machine.gpus
    if by_role is not None:
        gpus = all_gpus(by_role, most_routers(settings), len(groups) * most_replicas_per_group(settings))
    devices = choose_devices(settings, len(groups), gpus)
    dtype = _dtype(settings, devices)
    weights = WeightBytes(checkpoint, dtype, settings.model.quantize)
    card_bytes = _card_bytes(settings, weights, devices, machine, len(groups))
    threads = _threads(settings, machine, num_expert_replicas, by_role)
    plan = DeploymentPlan(
        settings=settings,
        folder=checkpoint.folder.resolve(),
        model_name=settings.model.name or name,
        fingerprint=checkpoint.fingerprint,
        config=config,
        dtype=dtype,
        engine_limits=standard_limits(settings, config, dtype, machine, card_bytes),
        long=long_pool(settings, config, dtype, machine, card_bytes, alone=by_role is not None),
        expert_groups=groups,
        router_threads=threads.router,
        expert_threads=threads.experts,
        context_threads=threads.context,
        context_bytes=context_bytes(settings, machine),
        segment_tokens=_segment_tokens(settings, config),
        weight_bytes=_weight_bytes(settings, weights, devices),
        devices=devices,
        by_role=by_role is not None,
    )
    _check_budget(plan)
    if by_role is None:
        _check_memory(plan, machine)
    else:
        check_machines(plan, weights, by_role)
    holder = machine if by_role is None else by_role.get(EXPERTS_ROLE, machine)
    return replace(plan, spare_bytes=_spare_bytes(plan, weights, holder))


@dataclass(frozen=True, slots=True)
class _Threads:
    """CPU threads of one replica of each kind."""

    router: int
    experts: int
    context: int


def _threads(
    settings: ClusterConfig, machine: Machine, num_expert_replicas: int, by_role: Mapping[str, Machine] | None
) -> _Threads:
    router, experts, context = settings.router.threads, settings.experts.threads, settings.context.threads
    if by_role is not None:
        return _Threads(
            router or machine.cores,
            experts or by_role.get(EXPERTS_ROLE, machine).cores,
            context or by_role.get(CONTEXT_ROLE, machine).cores,
        )
    # Routers and experts take turns, so each side may have all cores; replicas of one side compute side by side.
    return _Threads(
        router or max(1, machine.cores // settings.router.replicas),
        experts or max(1, machine.cores // max(num_expert_replicas, 1)),
        context or max(1, machine.cores // max(settings.context.shards, 1)),
    )


def _dtype(settings: ClusterConfig, devices: Devices) -> torch.dtype:
    if settings.router.dtype != "auto":
        dtype: torch.dtype = getattr(torch, settings.router.dtype)
        return dtype
    return torch.bfloat16 if devices.any_gpu else torch.float32


def _segment_tokens(settings: ClusterConfig, config: ModelConfig) -> int:
    """Return the tokens of a segment, 0 without shards.

    Raises:
        BadConfig: the model has no chunk-local layers, or segments are no whole chunks of them.
    """
    context, chunk = settings.context, config.attention_chunk
    if not context.shards:
        return 0
    if not chunk or not any(config.is_local(layer) for layer in range(config.num_layers)):
        raise BadConfig(
            f"context.shards: expected a model with chunk-local layers, as Llama 4 has, found {config.family}; set it "
            "to 0, and routers hold all keys and values"
        )
    segment_tokens = context.segment_tokens or chunk
    if segment_tokens % chunk:
        raise BadConfig(
            f"context.segment_tokens: expected a multiple of the model's attention chunk, {chunk}, found "
            f"{segment_tokens}; round it"
        )
    return segment_tokens


def _weight_bytes(settings: ClusterConfig, weights: WeightBytes, devices: Devices) -> int:
    """Return the bytes of all weights that are not on GPUs."""
    routers = _held_by_router(settings, weights, devices) * most_routers(settings) if devices.router == "cpu" else 0
    if devices.experts == "cuda" or not has_expert_replicas(settings, weights.checkpoint.config):
        return routers
    return routers + weights.experts("cpu") * most_replicas_per_group(settings)


def _held_by_router(settings: ClusterConfig, weights: WeightBytes, devices: Devices) -> int:
    """Return the bytes of weights in one router's process."""
    experts = weights.experts(devices.router) if settings.experts.in_router else 0
    return weights.router(devices.router) + experts


def _card_bytes(
    settings: ClusterConfig, weights: WeightBytes, devices: Devices, machine: Machine, group_count: int
) -> int | None:
    """Return what its weights leave of a router's card; None: it has none."""
    if devices.router == "cpu":
        return None
    replicas = group_count * most_replicas_per_group(settings) if devices.experts == "cuda" else 0
    # What each replica on the same machine shares with it.
    shared_bytes = replicas * DEVICE_SEGMENT_BYTES
    return usable_bytes(machine.gpus) - _held_by_router(settings, weights, devices) - shared_bytes


def _check_budget(plan: DeploymentPlan) -> None:
    """Check that the replicas there are at first, which are at least the fewest, fit the budget."""
    settings = plan.settings
    first = (
        sum(pool.replicas for pool in plan.pools.values())
        + len(plan.expert_groups) * settings.experts.replicas_per_group
        + settings.context.shards
    )
    budget = settings.scaling.budget
    if budget is not None and first > budget:
        raise BadConfig(
            f"scaling.budget: expected at least {first}, the routers, expert replicas and context shards there are at "
            f"first, found {budget}; raise it, or lower router.replicas, long.replicas, experts.replicas_per_group or "
            "context.shards"
        )


def _spare_bytes(plan: DeploymentPlan, weights: WeightBytes, machine: Machine) -> int:
    """Return the room each expert replica has for copies; by default for one expert, where there is memory for it."""
    if not plan.expert_groups:
        return 0
    device = plan.devices.experts
    # A sixteenth more: quantised forms have scales, packed ones are padded.
    expert_bytes = weights.experts(device) // plan.config.num_experts * 17 // 16
    asked = plan.settings.experts.spare_experts
    spare_bytes = expert_bytes * (1 if asked is None else asked)
    if device == "cuda":
        free_bytes, needed_bytes, holders = _free_beside_experts(plan, expert_bytes, machine), spare_bytes, "a GPU"
    elif plan.by_role:
        free_bytes = machine.free_bytes - replica_bytes(plan, weights)[EXPERTS_ROLE]
        needed_bytes, holders = spare_bytes, "a replica"
    else:
        free_bytes, needed_bytes = machine.free_bytes - plan.needed_bytes, spare_bytes * plan.num_replicas
        holders = f"{plan.num_replicas} replicas"
    if needed_bytes <= free_bytes:
        return spare_bytes
    if asked is None:
        return 0
    raise NotEnoughMemory(
        f"experts.spare_experts: expected {format_bytes(needed_bytes)} of memory for the copies that {holders} may "
        f"take on, found {format_bytes(free_bytes)} left; lower it or free memory"
    )


def _free_beside_experts(plan: DeploymentPlan, expert_bytes: int, machine: Machine) -> int:
    """Return what the largest group leaves of an expert replica's card.

    Raises:
        NotEnoughMemory: it does not fit.
    """
    most = max(map(len, plan.expert_groups))
    step_tokens = max(pool.engine_limits.step_tokens for pool in plan.pools.values())
    workspace = expert_workspace(plan.config, step_tokens=step_tokens, item_bytes=plan.dtype.itemsize)
    usable = usable_bytes(machine.gpus)
    free_bytes = usable - most * expert_bytes - workspace
    if free_bytes < 0:
        raise NotEnoughMemory(
            f"expected a GPU with room for {most} experts, {format_bytes(most * expert_bytes)}, and "
            f"{format_bytes(workspace)} of workspace, found {format_bytes(max(usable, 0))}; raise experts.groups, set "
            "model.quantize=int4 or experts.device=cpu"
        )
    return free_bytes


def _check_memory(plan: DeploymentPlan, machine: Machine) -> None:
    if plan.needed_bytes <= machine.free_bytes:
        return
    caches = ", ".join(
        f"{format_bytes(pool.engine_limits.kv_bytes)} KV cache and "
        f"{format_bytes(pool.engine_limits.host_kv_bytes)} for pages beside it for each of "
        f"{pool.bounds.max_replicas} {name}(s)"
        for name, pool in (("router", plan.pools[ROUTER]), ("long router", plan.long))
        if pool is not None
    )
    raise NotEnoughMemory(
        f"expected about {format_bytes(plan.needed_bytes)} of free memory ({format_bytes(plan.weight_bytes)} weights "
        f"in {plan.dtype_name}, {caches}, the rest processes), found {format_bytes(machine.free_bytes)}; "
        "free memory, set router.dtype=bfloat16, lower router.kv_bytes or router.host_kv_bytes, or use a larger machine"
    )
