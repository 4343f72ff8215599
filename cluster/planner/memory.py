"""Bytes of each device by component, and the context and concurrency that fit into what weights leave.

Weights, workspace, processes and a margin come first. What is left of a device is for keys and values: of its router,
or of its context shard. Every router has as much as the one with least, because they share one setting; shards too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from cluster.planner.assumptions import (
    BUFFER_BYTES,
    GPU_PROCESS_BYTES,
    MARGIN,
    PROCESS_BYTES,
    RAY_BYTES,
    SHARD_PAGE_TOKENS,
    SWAP_SHARE,
)
from cluster.planner.model_bytes import ROUTER_COMPONENTS
from cluster.planner.placement import Part, Placement
from cluster.planner.question import Question
from cluster.planner.workspace import expert_workspace, router_workspace, shard_workspace
from protos.errors import BadConfig
from router.kv_cache.layout import CacheLayout

Bytes = dict[str, int]
"""By component."""
COMPONENTS = (
    *ROUTER_COMPONENTS,
    "experts",
    "KV global",
    "KV local",
    "KV swap",
    "workspace",
    "runtime",
    "margin",
    "room for copies",
)
"""Everything on a device, in the order in which it is told."""


@dataclass(frozen=True)
class Memory:
    """A placement's memory.

    Args:
        question: what is asked.
        placement: of its fleet's devices.
        step_tokens: most tokens a router computes in one step.
    """

    question: Question
    placement: Placement
    step_tokens: int

    @cached_property
    def fixed(self) -> tuple[Bytes, ...]:
        """Return what each device holds before any key or value."""
        # Hundreds of devices hold a few kinds of things.
        by_kind: dict[tuple[tuple[str, int], ...], Bytes] = {}
        found = []
        for index, parts in enumerate(self.placement.devices):
            kind = tuple((part.role, len(part.experts)) for part in parts)
            if index == 0 or kind not in by_kind:
                by_kind[kind] = self._fixed(index)
            found.append(by_kind[kind])
        return tuple(found)

    @cached_property
    def kv_rooms(self) -> tuple[int, ...]:
        """Return what each device has left for keys and values; negative: its weights do not fit."""
        memory = int(self.question.fleet.device.memory_bytes)
        return tuple(memory - sum(fixed.values()) for fixed in self.fixed)

    @property
    def fits_weights(self) -> bool:
        """Tell whether every device holds what it must before any key or value."""
        return min(self.kv_rooms) >= 0

    @cached_property
    def router_layout(self) -> CacheLayout:
        """Return the layout of a router's cache."""
        return CacheLayout(self.question.config, self.question.kv_dtype)

    @cached_property
    def shard_layout(self) -> CacheLayout:
        """Return the layout of a context shard's pages."""
        return CacheLayout(self.question.config, self.question.kv_dtype, int(SHARD_PAGE_TOKENS.value))

    @cached_property
    def router_room(self) -> int:
        """Return the bytes each router may use for its cache."""
        room = self._least_room("router")
        return int(room / (1 + SWAP_SHARE.value)) if self.question.fleet.device.is_cpu else room

    @cached_property
    def shard_pages(self) -> int:
        """Return the pages of each context shard."""
        if not self.placement.shape.shards:
            return 0
        return max(self._least_room("context shard"), 0) // self.shard_layout.pages_bytes(1, 0)

    @property
    def shard_bytes(self) -> int:
        """Return the bytes each context shard uses."""
        return self.shard_layout.pages_bytes(self.shard_pages, 0)

    @property
    def slots(self) -> int:
        """Return the sequences of one router."""
        return self._sequences_each(self.question.concurrency)

    @cached_property
    def kv_bytes(self) -> int:
        """Return the bytes each router is given: all it has, but no more than its sequences can ever need."""
        most = self.question.config.max_positions
        if self.placement.shape.shards:
            local = self.router_layout.num_pages(most)[1]
            return min(self.router_room, self.slots * self.router_layout.pages_bytes(0, local))
        return min(self.router_room, self.slots * self.router_layout.sequence_bytes(most))

    def fits(self, context: int, concurrency: int) -> bool:
        """Tell whether so many sequences of so many tokens can be there at once."""
        if not self.fits_weights:
            return False
        slots, layout = self._sequences_each(concurrency), self.router_layout
        num_global, num_local = layout.num_pages(context)
        try:
            if self.placement.shape.shards:
                plan = layout.plan_local(self.router_room)
                pages = -(-context // self.shard_layout.page_tokens)
                if concurrency * pages > self.placement.shape.shards * self.shard_pages:
                    return False
                return slots * num_local <= plan.num_local_pages
            plan = layout.plan(self.router_room, slots, context)
        except BadConfig:
            return False
        return slots * num_global <= plan.num_global_pages and slots * num_local <= plan.num_local_pages

    def longest_context(self, concurrency: int) -> int:
        """Return the most tokens that each of so many sequences can have; 0: not even two."""
        return _largest(lambda context: self.fits(context, concurrency), 2, self.question.config.max_positions)

    def most_sequences(self, context: int) -> int:
        """Return how many sequences of so many tokens can be there at once."""
        least = min(self.router_layout.sequence_bytes(context), self.shard_layout.pages_bytes(1, 0))
        rooms = sum(max(room, 0) for room in self.kv_rooms)
        return _largest(lambda count: self.fits(context, count), 1, rooms // max(least, 1) + 1)

    @cached_property
    def spare_experts(self) -> int:
        """Return how many experts of other groups each replica of experts has room for copies of."""
        if not self.placement.shape.groups or self.placement.shape.is_local:
            return 0
        room = min(
            self._unused(index) // sum(part.role == "experts" for part in parts)
            for index, parts in enumerate(self.placement.devices)
            if any(part.role == "experts" for part in parts)
        )
        others = self.question.config.num_experts - self.placement.group_experts
        return max(min(room // self.question.model_bytes.expert, others), 0)

    def device_bytes(self, index: int) -> Bytes:
        """Return everything on a device by component, and `free`."""
        held = dict.fromkeys(COMPONENTS, 0) | self.fixed[index] | self._kv_bytes(index)
        replicas = sum(part.role == "experts" for part in self.placement.devices[index])
        held["room for copies"] = self.spare_experts * replicas * self.question.model_bytes.expert
        held["free"] = int(self.question.fleet.device.memory_bytes) - sum(held.values())
        return held

    def _unused(self, index: int) -> int:
        return self.kv_rooms[index] - sum(self._kv_bytes(index).values())

    def _kv_bytes(self, index: int) -> Bytes:
        """Return what a device's keys and values take."""
        held: Bytes = {"KV global": 0, "KV local": 0, "KV swap": 0}
        for part in self.placement.devices[index]:
            if part.role == "router":
                held["KV global"] += self.kv_split[0]
                held["KV local"] += self.kv_split[1]
                if self.question.fleet.device.is_cpu:
                    held["KV swap"] += int(self.kv_bytes * SWAP_SHARE.value)
            elif part.role == "context shard":
                held["KV global"] += self.shard_bytes
        return held

    @cached_property
    def kv_split(self) -> tuple[int, int]:
        """Return the bytes of a router's cache for global and for local layers, as the engine shares them out."""
        layout = self.router_layout
        if self.placement.shape.shards:
            plan = layout.plan_local(self.kv_bytes)
        else:
            plan = layout.plan(self.kv_bytes, self.slots, self.question.context)
        return layout.pages_bytes(plan.num_global_pages, 0), layout.pages_bytes(0, plan.num_local_pages)

    def _sequences_each(self, concurrency: int) -> int:
        return -(-concurrency // self.placement.shape.routers)

    def _least_room(self, role: str) -> int:
        """Return the least that a process of a kind has for keys and values; those on one device share it evenly."""
        rooms = []
        for room, parts in zip(self.kv_rooms, self.placement.devices, strict=True):
            holders = [part.role for part in parts if part.role != "experts"]
            if role in holders:
                rooms.append(room // len(holders))
        return min(rooms)

    def _fixed(self, index: int) -> Bytes:
        question, parts = self.question, self.placement.devices[index]
        held: Bytes = {"margin": int(question.fleet.device.memory_bytes * MARGIN.value)}
        for part in parts:
            for component, num_bytes in self._part_bytes(part).items():
                held[component] = held.get(component, 0) + num_bytes
        if question.fleet.device.is_cpu and index == 0:
            # The front door is here, and Ray's head.
            held["runtime"] += int(PROCESS_BYTES.value + RAY_BYTES.value)
        return held

    def _part_bytes(self, part: Part) -> Bytes:
        """Return what one process takes besides keys and values."""
        question, weights = self.question, self.question.model_bytes
        process = PROCESS_BYTES if question.fleet.device.is_cpu else GPU_PROCESS_BYTES
        sizes = {"step_tokens": self.step_tokens, "item_bytes": question.item_bytes}
        if part.role == "router":
            held: Bytes = {component: weights.component(component) for component in ROUTER_COMPONENTS}
            held["workspace"] = router_workspace(question.config, slots=self.slots, **sizes)
        elif part.role == "experts":
            held = {"experts": weights.expert * len(part.experts)}
            held["workspace"] = expert_workspace(question.config, **sizes)
        else:
            held = {"workspace": shard_workspace(question.config, **sizes)}
        if question.fleet.device.is_cpu:
            held["workspace"] += int(BUFFER_BYTES.value)
        is_own_process = part.role != "experts" or not self.placement.shape.is_local
        return held | {"runtime": int(process.value) * is_own_process}


def _largest(holds: Callable[[int], bool], least: int, most: int) -> int:
    """Return the largest number for which something holds that holds for all smaller ones; 0 if for none."""
    if not holds(least):
        return 0
    if holds(most):
        return most
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (middle, most) if holds(middle) else (least, middle)
    return least
