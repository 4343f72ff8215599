"""What will run where: every derived value, from the settings, the model and the machine. Pure arithmetic."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from cluster.autoscaling import Bounds
from cluster.byte_text import format_bytes
from cluster.config import ClusterConfig
from cluster.machine import Machine
from models.checkpoint import Checkpoint
from models.config import ModelConfig
from models.linear import BITS_PER_WEIGHT
from protos.errors import BadConfig, NotEnoughMemory
from router.kv_cache.codec import dtype_name
from router.kv_cache.layout import CacheLayout
from router.limits import EngineLimits

PROCESS_BYTES = 370 * 1024**2
"""Memory of a replica besides weights and cache: Python, torch, Ray. Measured as 340 to 375 MB with torch 2.13."""
RAY_BYTES = 1000 * 1024**2
"""Memory of Ray itself and the processes of Serve."""
MAX_KV_SHARE = 0.25
"""Largest part of the free memory that a derived KV cache takes."""


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
    """What one router takes on."""
    expert_groups: tuple[tuple[int, ...], ...]
    """Logical experts of each group; empty for a dense model."""
    router_threads: int
    """CPU threads of one router."""
    expert_threads: int
    """CPU threads of one expert replica."""
    weight_bytes: int
    """Bytes of all weights in memory, with as many replicas as there may be."""
    spare_bytes: int = 0
    """Bytes of weights that an expert replica may take on beyond its group's: copies of experts that are in demand."""

    @property
    def dtype_name(self) -> str:
        """Return the dtype's name, for example float32."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def router_bounds(self) -> Bounds:
        """Return how many routers there may be."""
        return self.settings.scaling.routers(self.settings.router.replicas)

    @property
    def expert_bounds(self) -> Bounds:
        """Return how many replicas each expert group may have."""
        return self.settings.scaling.experts(self.settings.experts.replicas_per_group)

    @property
    def is_scaled(self) -> bool:
        """Tell whether any number of replicas may change."""
        bounds = (self.router_bounds, self.expert_bounds, self.settings.scaling.front_doors())
        return any(each.max_replicas > each.min_replicas for each in bounds)

    @property
    def num_replicas(self) -> int:
        """Count the processes with weights, as many as there may be."""
        return self.router_bounds.max_replicas + len(self.expert_groups) * self.expert_bounds.max_replicas

    @property
    def needed_bytes(self) -> int:
        """Estimate the memory all processes take, with as many as there may be."""
        limits = self.engine_limits
        kv_bytes = (limits.kv_bytes + limits.host_kv_bytes) * self.router_bounds.max_replicas
        doors = self.settings.scaling.front_doors().max_replicas
        processes = (self.num_replicas + doors) * PROCESS_BYTES + RAY_BYTES
        return self.weight_bytes + kv_bytes + processes


def make_plan(settings: ClusterConfig, checkpoint: Checkpoint, name: str, machine: Machine) -> DeploymentPlan:
    """Derive everything that the settings leave open.

    Args:
        settings: checked.
        checkpoint: the model's.
        name: what to call the model where the settings do not say.
        machine: where it will run.

    Raises:
        BadConfig: the settings do not fit the model.
        NotEnoughMemory: the machine is too small.
    """
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
        engine_limits=_engine_limits(settings, config, dtype, machine),
        expert_groups=groups,
        # Routers and experts take turns, so each side may have all cores; replicas of one side compute side by side.
        router_threads=settings.router.threads or max(1, machine.cores // settings.router.replicas),
        expert_threads=settings.experts.threads or max(1, machine.cores // max(num_expert_replicas, 1)),
        weight_bytes=_weight_bytes(settings, checkpoint, dtype),
    )
    _check_budget(plan)
    _check_memory(plan, machine)
    return replace(plan, spare_bytes=_spare_bytes(plan, checkpoint, machine))


def group_experts(num_experts: int, num_groups: int | None) -> tuple[tuple[int, ...], ...]:
    """Split the experts into groups of neighbours, as even as can be.

    Args:
        num_experts: of a layer; 0 for a dense model, which has no groups.
        num_groups: how many; None: 2, or 1 when there is one expert only.

    Raises:
        BadConfig: more groups than experts.
    """
    if num_experts == 0:
        return ()
    count = min(2, num_experts) if num_groups is None else num_groups
    if count > num_experts:
        raise BadConfig(
            f"experts.groups: expected at most {num_experts}, one per expert, found {count}; "
            "lower it, or raise experts.replicas_per_group"
        )
    bounds = [num_experts * index // count for index in range(count + 1)]
    return tuple(tuple(range(start, stop)) for start, stop in itertools.pairwise(bounds))


def _engine_limits(settings: ClusterConfig, config: ModelConfig, dtype: torch.dtype, machine: Machine) -> EngineLimits:
    router = settings.router
    stored = dtype_name(dtype) if router.kv_dtype == "auto" else router.kv_dtype
    layout = CacheLayout(config, stored, router.page_tokens)
    asked, most = settings.model.context_length, config.max_positions
    if asked is not None and asked > most:
        raise BadConfig(f"model.context_length: expected at most the model's {most} tokens, found {asked}; lower it")
    full_bytes = router.slots * layout.sequence_bytes(asked or most)
    kv_bytes = router.kv_bytes or min(full_bytes, int(machine.free_bytes * MAX_KV_SHARE))
    least_bytes = layout.sequence_bytes(asked or 2)
    if least_bytes > kv_bytes:
        raise NotEnoughMemory(
            f"expected a KV cache that holds one context of {asked or 2} tokens, {format_bytes(least_bytes)}, found "
            f"room for {format_bytes(kv_bytes)}; lower model.context_length, raise router.kv_bytes or free memory"
        )
    return EngineLimits(
        context_length=asked or layout.longest_sequence(layout.plan(kv_bytes, router.slots)),
        kv_bytes=kv_bytes,
        kv_dtype=stored,
        page_tokens=router.page_tokens,
        prefix_cache=router.prefix_cache,
        host_kv_bytes=kv_bytes // 4 if router.host_kv_bytes is None else router.host_kv_bytes,
        disk_kv_bytes=router.disk_kv_bytes,
        kv_folder=None if router.kv_folder is None else Path(router.kv_folder).absolute(),
        slots=router.slots,
        max_waiting=router.max_waiting,
        step_tokens=router.step_tokens,
        prefill_stretch=router.prefill_stretch,
    )


def _weight_bytes(settings: ClusterConfig, checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    config, quantize = checkpoint.config, settings.model.quantize
    stored_size: int = getattr(torch, config.dtype).itemsize
    router = checkpoint.router_bytes // stored_size
    if quantize is None:
        router_bytes = router * dtype.itemsize
    else:
        bits, embeddings = BITS_PER_WEIGHT[quantize], config.vocab_size * config.hidden_size
        # Embeddings stay as they are; the LM head has 8 bits, as a copy where the two are tied.
        rest = router - (embeddings if config.tie_embeddings else 2 * embeddings)
        router_bytes = embeddings * (dtype.itemsize + 1) + rest * bits // 8
    routers = settings.scaling.routers(settings.router.replicas).max_replicas
    copies = settings.scaling.experts(settings.experts.replicas_per_group).max_replicas
    return router_bytes * routers + _expert_bytes(settings, checkpoint, dtype) * copies


def _expert_bytes(settings: ClusterConfig, checkpoint: Checkpoint, dtype: torch.dtype) -> int:
    """Return the bytes of all routed experts in memory, each held once."""
    stored_size: int = getattr(torch, checkpoint.config.dtype).itemsize
    weights = (checkpoint.total_bytes - checkpoint.router_bytes) // stored_size
    quantize = settings.model.quantize
    return weights * dtype.itemsize if quantize is None else weights * BITS_PER_WEIGHT[quantize] // 8


def _check_budget(plan: DeploymentPlan) -> None:
    """Check that the replicas there are at first, which are at least the fewest, fit the budget."""
    settings = plan.settings
    first = settings.router.replicas + len(plan.expert_groups) * settings.experts.replicas_per_group
    budget = settings.scaling.budget
    if budget is not None and first > budget:
        raise BadConfig(
            f"scaling.budget: expected at least {first}, the routers and expert replicas there are at first, found "
            f"{budget}; raise it, or lower router.replicas or experts.replicas_per_group"
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
    limits = plan.engine_limits
    raise NotEnoughMemory(
        f"expected about {format_bytes(plan.needed_bytes)} of free memory ({format_bytes(plan.weight_bytes)} weights "
        f"in {plan.dtype_name}, {format_bytes(limits.kv_bytes)} KV cache and {format_bytes(limits.host_kv_bytes)} for "
        f"pages beside it for each of {plan.router_bounds.max_replicas} router(s), the rest processes), found "
        f"{format_bytes(machine.free_bytes)}; free memory, set router.dtype=bfloat16, lower router.kv_bytes or "
        "router.host_kv_bytes, or use a larger machine"
    )
