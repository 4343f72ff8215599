"""What will run where: every derived value, from the settings, the model and the machine. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from cluster.byte_text import format_bytes
from cluster.config import ClusterConfig
from cluster.deployment_plan import DeploymentPlan
from cluster.devices import Devices, choose_devices, has_expert_replicas, most_replicas_per_group, most_routers
from cluster.expert_groups import group_experts
from cluster.gpu_room import usable_bytes
from cluster.machine import Machine
from cluster.names import ROUTER
from cluster.planner.workspace import expert_workspace
from cluster.pool_plan import context_bytes, long_pool, standard_limits
from cluster.role_memory import all_gpus, check_machines, replica_bytes
from cluster.roles import CONTEXT_ROLE, EXPERTS_ROLE
from cluster.weight_bytes import WeightBytes
from models.checkpoint import Checkpoint
from models.config import ModelConfig
from protos.device_memory import DEVICE_SEGMENT_BYTES
from protos.errors import BadConfig, NotEnoughMemory
from router.kv_cache.layout import ELEMENT_BYTES, FloatDtype


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
    weights = WeightBytes(checkpoint, ELEMENT_BYTES[dtype], settings.model.quantize)
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


def _dtype(settings: ClusterConfig, devices: Devices) -> FloatDtype:
    if settings.router.dtype != "auto":
        return settings.router.dtype
    return "bfloat16" if devices.any_gpu else "float32"


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
    workspace = expert_workspace(plan.config, step_tokens=step_tokens, item_bytes=ELEMENT_BYTES[plan.dtype])
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
        f"in {plan.dtype}, {caches}, the rest processes), found {format_bytes(machine.free_bytes)}; "
        "free memory, set router.dtype=bfloat16, lower router.kv_bytes or router.host_kv_bytes, or use a larger machine"
    )
