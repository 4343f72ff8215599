"""What the routers of each length class take on, from the settings, the model and the machine. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cluster.byte_text import format_bytes
from cluster.config import ClusterConfig
from cluster.deployment_plan import PoolPlan
from cluster.devices import most_routers
from cluster.gpu_room import workspace_bytes
from cluster.machine import Machine
from models.config import ModelConfig
from protos.errors import BadConfig, NotEnoughMemory
from router.kv_cache.layout import ELEMENT_BYTES, CacheLayout, FloatDtype
from router.limits import EngineLimits

MAX_KV_SHARE = 0.25
"""Largest part of the free memory that a derived KV cache takes."""


def context_bytes(settings: ClusterConfig, machine: Machine) -> int:
    """Return the bytes of keys and values of one context shard; 0: there are none."""
    context = settings.context
    if not context.shards:
        return 0
    return context.kv_bytes or int(machine.free_bytes * MAX_KV_SHARE) // context.most_shards


@dataclass(frozen=True, kw_only=True, slots=True)
class _PoolRequest:
    """What settings ask of one pool of routers."""

    section: str
    """Of its settings."""
    context_length: int | None
    context_setting: str
    """The setting that says so."""
    slots: int
    max_waiting: int
    step_tokens: int
    kv_bytes: int | None
    on_shards: bool
    idle_priority: bool = False


def _standard_request(settings: ClusterConfig, config: ModelConfig) -> _PoolRequest:
    """Return what is asked of the routers for everything, or for all but long requests."""
    asked, long_from, router = settings.model.context_length, settings.long.from_tokens, settings.router
    if long_from is not None:
        asked = min(long_from - 1, config.max_positions)  # whatever is shorter than a long request is theirs
    return _PoolRequest(
        section="router",
        context_length=asked,
        context_setting="model.context_length" if long_from is None else "long.from_tokens",
        slots=router.slots,
        max_waiting=router.max_waiting,
        step_tokens=router.step_tokens,
        kv_bytes=router.kv_bytes,
        on_shards=settings.context.shards > 0 and long_from is None,
    )


def standard_limits(
    settings: ClusterConfig,
    config: ModelConfig,
    dtype: FloatDtype,
    machine: Machine,
    card_bytes: int | None = None,
) -> EngineLimits:
    """Return what one router for everything, or for all but long requests, takes on.

    Args:
        settings: checked.
        config: the model's.
        dtype: that is computed in.
        machine: where.
        card_bytes: what weights leave of a router's GPU; None: it has none.

    Raises:
        BadConfig: the context is longer than the model's.
        NotEnoughMemory: not one context has room.
    """
    return _engine_limits(_standard_request(settings, config), settings, config, dtype, machine, card_bytes)


def long_pool(
    settings: ClusterConfig,
    config: ModelConfig,
    dtype: FloatDtype,
    machine: Machine,
    card_bytes: int | None = None,
    *,
    alone: bool = False,
) -> PoolPlan | None:
    """Return the routers for long requests; None: there are none.

    Args:
        settings: checked.
        config: the model's.
        dtype: that is computed in.
        machine: where.
        card_bytes: what weights leave of a router's GPU; None: it has none.
        alone: whether each of them has the machine to itself.

    Raises:
        BadConfig: no request could be long, or the context is longer than the model's.
        NotEnoughMemory: not one context has room.
    """
    long = settings.long
    if long.from_tokens is None:
        return None
    request = _PoolRequest(
        section="long",
        context_length=long.context_length or settings.model.context_length,
        context_setting="long.context_length",
        slots=long.slots,
        max_waiting=0,  # the line is in the front door, where a router that has room may take the next
        step_tokens=long.step_tokens,
        kv_bytes=long.kv_bytes,
        on_shards=settings.context.shards > 0,
        idle_priority=long.priority == "idle",
    )
    limits = _engine_limits(request, settings, config, dtype, machine, card_bytes)
    if long.from_tokens > limits.context_length:
        raise BadConfig(
            f"long.from_tokens: expected at most {limits.context_length}, the longest context there is, found "
            f"{long.from_tokens}; lower it, or raise long.context_length or long.kv_bytes"
        )
    return PoolPlan(
        engine_limits=limits,
        threads=long.threads or max(1, machine.cores // (1 if alone else long.replicas)),
        replicas=long.replicas,
        bounds=long.bounds(),
    )


def _engine_limits(
    request: _PoolRequest,
    settings: ClusterConfig,
    config: ModelConfig,
    dtype: FloatDtype,
    machine: Machine,
    card_bytes: int | None,
) -> EngineLimits:
    router = settings.router
    stored = dtype if router.kv_dtype == "auto" else router.kv_dtype
    layout = CacheLayout(config, stored, router.page_tokens)
    asked, most = request.context_length, config.max_positions
    if asked is not None and asked > most:
        raise BadConfig(
            f"{request.context_setting}: expected at most the model's {most} tokens, found {asked}; lower it"
        )
    if request.on_shards:
        context_length, kv_bytes = _on_shards(request, settings, layout, machine)
    elif card_bytes is not None:
        workspace = workspace_bytes(
            config,
            step_tokens=request.step_tokens,
            slots=request.slots,
            item_bytes=ELEMENT_BYTES[dtype],
            in_router=settings.experts.in_router,
        )
        context_length, kv_bytes = _on_card(request, layout, card_bytes - workspace)
    else:
        context_length, kv_bytes = _in_own_cache(request, layout, int(machine.free_bytes * MAX_KV_SHARE))
    host_kv_bytes = router.host_kv_bytes
    if host_kv_bytes is None:
        host_kv_bytes = kv_bytes // 4
        if card_bytes is not None:  # a card may have more memory than its host
            host_kv_bytes = min(host_kv_bytes, int(machine.free_bytes * MAX_KV_SHARE) // most_routers(settings))
    return EngineLimits(
        context_length=context_length,
        kv_bytes=kv_bytes,
        kv_dtype=stored,
        page_tokens=router.page_tokens,
        prefix_cache=router.prefix_cache and not request.on_shards,
        host_kv_bytes=0 if request.on_shards else host_kv_bytes,
        disk_kv_bytes=0 if request.on_shards else router.disk_kv_bytes,
        kv_folder=None if router.kv_folder is None else Path(router.kv_folder).absolute(),
        on_shards=request.on_shards,
        experts_in_process=settings.experts.in_router,
        slots=request.slots,
        max_waiting=request.max_waiting,
        step_tokens=request.step_tokens,
        prefill_stretch=router.prefill_stretch,
        idle_priority=request.idle_priority,
    )


def _on_card(request: _PoolRequest, layout: CacheLayout, room_bytes: int) -> tuple[int, int]:
    """Return the same as `_in_own_cache` of routers on GPUs, which have so much room there."""
    kv_bytes = request.kv_bytes or layout.sequence_bytes(request.context_length or 2)
    if kv_bytes > room_bytes:
        raise NotEnoughMemory(
            f"expected {format_bytes(kv_bytes)} of KV cache to fit a router's GPU beside its weights, its workspace "
            f"and a margin, found {format_bytes(abs(room_bytes))} {'left' if room_bytes >= 0 else 'too little'}; set "
            f"model.quantize=int4 or router.device=cpu, lower {request.section}.kv_bytes or {request.context_setting}, "
            "or take the experts out of the router's process if they are in it"
        )
    return _in_own_cache(request, layout, room_bytes)


def _in_own_cache(request: _PoolRequest, layout: CacheLayout, room_bytes: int) -> tuple[int, int]:
    """Return the context length of routers that hold all keys and values, and the bytes of their cache.

    Args:
        request: what is asked of them.
        layout: of the cache.
        room_bytes: most that the cache takes unless settings say how much.
    """
    asked, section = request.context_length, request.section
    full_bytes = request.slots * layout.sequence_bytes(asked or layout.config.max_positions)
    kv_bytes = request.kv_bytes or min(full_bytes, room_bytes)
    least_bytes = layout.sequence_bytes(asked or 2)
    if least_bytes > kv_bytes:
        raise NotEnoughMemory(
            f"expected a KV cache that holds one context of {asked or 2} tokens, {format_bytes(least_bytes)}, found "
            f"room for {format_bytes(kv_bytes)}; lower {request.context_setting}, raise {section}.kv_bytes or free "
            "memory"
        )
    return asked or layout.longest_sequence(layout.plan(kv_bytes, request.slots)), kv_bytes


def _on_shards(
    request: _PoolRequest, settings: ClusterConfig, layout: CacheLayout, machine: Machine
) -> tuple[int, int]:
    """Return the same of routers whose own cache is for local layers alone."""
    num_shards, segment_tokens = settings.context.most_shards, settings.context.segment_tokens or layout.chunk or 1
    whole, rest = divmod(context_bytes(settings, machine) // layout.global_token_bytes, segment_tokens)
    num_tokens = num_shards * whole * segment_tokens + rest  # a segment lies on one shard: only the last may be short
    asked, most = request.context_length, min(layout.config.max_positions, num_tokens)
    if (asked or 2) > most:
        raise NotEnoughMemory(
            f"expected {num_shards} context shards that hold {asked or 2} tokens, found room for "
            f"{num_tokens}; lower {request.context_setting}, raise context.kv_bytes or the number of shards"
        )
    # One chunk more than there are slots: to compute lost segments again beside sequences that hold theirs.
    chunks_bytes = (request.slots + 1) * layout.pages_bytes(0, layout.num_pages(layout.chunk or 0)[1])
    return asked or most, request.kv_bytes or min(chunks_bytes, int(machine.free_bytes * MAX_KV_SHARE))
