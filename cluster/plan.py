"""What will run where: every derived value, from the settings, the model and the machine. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cluster.autoscaling import Bounds
from cluster.byte_text import format_bytes
from cluster.config import ClusterConfig
from cluster.expert_groups import group_experts
from cluster.machine import Machine
from cluster.names import LONG_ROUTER, ROUTER
from cluster.planner import assumptions
from cluster.pool_plan import PoolPlan, context_bytes, long_pool, standard_limits
from models.checkpoint import Checkpoint, kept_names
from models.checkpoint.tensor_shapes import expert_names
from models.config import ModelConfig
from models.linear import BITS_PER_WEIGHT, check_rounding
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
    """Logical experts of each group; empty for a dense model."""
    router_threads: int
    """CPU threads of one router."""
    expert_threads: int
    """CPU threads of one expert replica."""
    weight_bytes: int
    """Bytes of all weights in memory, with as many replicas as there may be."""
    context_threads: int = 1
    """CPU threads of one context shard."""
    context_bytes: int = 0
    """Bytes of keys and values of one context shard."""
    segment_tokens: int = 0
    """Tokens that lie together on one shard; 0: there are no shards."""
    long: PoolPlan | None = None
    """Routers for long requests; None: all requests share the others."""
    spare_bytes: int = 0
    """Bytes of weights that an expert replica may take on beyond its group's: copies of experts that are in demand."""

    @property
    def dtype_name(self) -> str:
        """Return the dtype's name, for example float32."""
        return str(self.dtype).removeprefix("torch.")

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
    def needed_bytes(self) -> int:
        """Estimate the memory all processes take, with as many as there may be."""
        limits = [(pool.engine_limits, pool.bounds.max_replicas) for pool in self.pools.values()]
        kv_bytes = sum((each.kv_bytes + each.host_kv_bytes) * replicas for each, replicas in limits)
        doors = self.settings.scaling.front_doors().max_replicas
        shards = self.settings.context.most_shards
        processes = (self.num_replicas + doors + shards + self.warm_spares) * PROCESS_BYTES + RAY_BYTES
        return self.weight_bytes + kv_bytes + shards * self.context_bytes + processes


def make_plan(settings: ClusterConfig, checkpoint: Checkpoint, name: str, machine: Machine) -> DeploymentPlan:
    """Derive everything that the settings leave open.

    Args:
        settings: checked.
        checkpoint: the model's.
        name: what to call the model where the settings do not say.
        machine: where it will run.

    Raises:
        BadConfig: the settings do not fit the model or the machine.
        NotEnoughMemory: the machine is too small.
    """
    check_rounding(settings.model.quantize, torch.device("cpu"))  # where all of it computes
    config = checkpoint.config
    dtype = torch.float32 if settings.router.dtype == "auto" else getattr(torch, settings.router.dtype)
    groups = group_experts(config.num_experts, settings.experts.groups)
    num_expert_replicas = len(groups) * settings.experts.replicas_per_group
    plan = DeploymentPlan(
        settings=settings,
        folder=checkpoint.folder.resolve(),
        model_name=settings.model.name or name,
        fingerprint=checkpoint.fingerprint,
        config=config,
        dtype=dtype,
        engine_limits=standard_limits(settings, config, dtype, machine),
        long=long_pool(settings, config, dtype, machine),
        expert_groups=groups,
        # Routers and experts take turns, so each side may have all cores; replicas of one side compute side by side.
        router_threads=settings.router.threads or max(1, machine.cores // settings.router.replicas),
        expert_threads=settings.experts.threads or max(1, machine.cores // max(num_expert_replicas, 1)),
        context_threads=settings.context.threads or max(1, machine.cores // max(settings.context.shards, 1)),
        context_bytes=context_bytes(settings, machine),
        segment_tokens=_segment_tokens(settings, config),
        weight_bytes=_weight_bytes(settings, checkpoint, dtype),
    )
    _check_budget(plan)
    _check_memory(plan, machine)
    return replace(plan, spare_bytes=_spare_bytes(plan, checkpoint, machine))


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


def _weight_bytes(settings: ClusterConfig, checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    config, quantize, router = checkpoint.config, settings.model.quantize, checkpoint.router_weights
    if quantize is None:
        kept = sum(map(checkpoint.num_weights, kept_names(checkpoint) - _expert_tensors(config)))
        router_bytes = (router - kept) * dtype.itemsize + kept * BITS_PER_WEIGHT["int4"] // 8
    else:
        bits, embeddings = BITS_PER_WEIGHT[quantize], config.vocab_size * config.hidden_size
        # Embeddings stay as they are; the LM head has 8 bits, as a copy where the two are tied.
        rest = router - (embeddings if config.tie_embeddings else 2 * embeddings)
        router_bytes = embeddings * (dtype.itemsize + 1) + rest * bits // 8
    routers = settings.scaling.routers(settings.router.replicas).max_replicas
    if settings.long.from_tokens is not None:
        routers += settings.long.bounds().max_replicas
    copies = settings.scaling.experts(settings.experts.replicas_per_group).max_replicas
    return router_bytes * routers + _expert_bytes(settings, checkpoint, dtype) * copies


def _expert_bytes(settings: ClusterConfig, checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """Return the bytes of all routed experts in memory, each held once."""
    weights = checkpoint.config.num_experts * checkpoint.expert_weights
    quantize = settings.model.quantize
    if quantize is not None:
        return weights * BITS_PER_WEIGHT[quantize] // 8
    kept = sum(map(checkpoint.num_weights, kept_names(checkpoint) & _expert_tensors(checkpoint.config)))
    return (weights - kept) * dtype.itemsize + kept * BITS_PER_WEIGHT["int4"] // 8


def _expert_tensors(config: ModelConfig) -> frozenset[str]:
    """Return the names of all routed experts' matrices."""
    return frozenset(
        name
        for layer in config.moe_layers
        for expert in range(config.num_experts)
        for name in expert_names(layer, expert)
    )


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


def _spare_bytes(plan: DeploymentPlan, checkpoint: Checkpoint, machine: Machine) -> int:
    """Return the room each expert replica has for copies; by default for one expert, where the machine has it."""
    if not plan.expert_groups:
        return 0
    # A sixteenth more: quantised forms have scales, packed ones are padded.
    expert_bytes = _expert_bytes(plan.settings, checkpoint, plan.dtype) // plan.config.num_experts * 17 // 16
    asked = plan.settings.experts.spare_experts
    spare_bytes = expert_bytes * (1 if asked is None else asked)
    free_bytes = machine.free_bytes - plan.needed_bytes
    needed_bytes = spare_bytes * plan.num_replicas
    if needed_bytes <= free_bytes:
        return spare_bytes
    if asked is None:
        return 0
    raise NotEnoughMemory(
        f"experts.spare_experts: expected {format_bytes(needed_bytes)} of memory for the copies that "
        f"{plan.num_replicas} replicas may take on, found {format_bytes(free_bytes)} left; lower it or free memory"
    )


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
