"""Which process is on which device: the shapes a deployment can have, and one placement of each.

Each router, replica of an expert group and context shard is one process. With a device for each of them, they have one
each; else every router shares its device with a replica of experts. On one GPU the experts are in the router's process.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from cluster.expert_groups import group_experts
from cluster.planner.hardware import Fleet
from models.config import ModelConfig

Role = Literal["router", "experts", "context shard"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """How many processes of each kind."""

    routers: int
    groups: int = 0
    """Expert groups; 0 for a dense model."""
    copies: int = 1
    """Replicas of each group."""
    shards: int = 0
    """Context shards; 0: routers keep all keys and values themselves."""
    is_local: bool = False
    """Experts are in the router's own process, and no dispatch leaves it."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process, or the experts in a router's own."""

    role: Role
    index: int
    """Of the router, the group or the shard."""
    copy: int = 0
    """Which replica of its group."""
    experts: tuple[int, ...] = ()
    """Logical experts it holds."""


@dataclass(frozen=True, slots=True)
class Placement:
    """Processes by device."""

    shape: Shape
    devices: tuple[tuple[Part, ...], ...]

    def nodes_of(self, role: Role, fleet: Fleet) -> set[int]:
        """Return the nodes that have a process of a kind."""
        found = (index for index, parts in enumerate(self.devices) if any(part.role == role for part in parts))
        return {fleet.node_of(index) for index in found}

    @property
    def is_shared(self) -> bool:
        """Tell whether any device has more than one process."""
        return any(len(parts) > 1 for parts in self.devices) and not self.shape.is_local

    @property
    def group_experts(self) -> int:
        """Return the experts of the largest group."""
        return max((len(part.experts) for parts in self.devices for part in parts), default=0)


def shapes(fleet: Fleet, config: ModelConfig, *, copies: int, most_experts: int) -> Iterator[Shape]:
    """Yield the shapes that are worth trying: they use every device, and some share devices.

    Args:
        fleet: the devices.
        config: of the model.
        copies: fewest replicas of each group.
        most_experts: that one device can hold.
    """
    count = fleet.num_devices
    most_shards = count - 1 if config.attention_chunk is not None and config.nope_layers else 0
    if not config.num_experts:
        yield from (Shape(routers=count - shards, shards=shards) for shards in _some(0, most_shards))
    elif count == 1 and copies == 1:
        groups = min(2, config.num_experts) if fleet.device.is_cpu else 1
        yield Shape(routers=1, groups=groups, is_local=not fleet.device.is_cpu)
    elif count > 1:
        fewest = -(-config.num_experts // max(most_experts, 1))
        for groups in range(fewest, min(config.num_experts, count) + 1):
            for each in _some(copies, count // groups):
                left = count - groups * each
                for shards in _some(0, min(left - 1, most_shards)):
                    yield Shape(routers=left - shards, groups=groups, copies=each, shards=shards)
                yield Shape(routers=count, groups=groups, copies=each)
                if left and most_shards:
                    yield Shape(routers=groups * each, groups=groups, copies=each, shards=left)


def _some(least: int, most: int) -> Iterator[int]:
    """Yield numbers from one to another: all of them up to 16, then in steps of a quarter, and the last."""
    number = least
    while number < most:
        yield number
        number += number // 4 if number >= 16 else 1
    if number >= most >= least:
        yield most


def place(shape: Shape, fleet: Fleet, config: ModelConfig) -> Placement | None:
    """Put every process on a device; None if copies of an expert would meet on one.

    1. Replicas of experts, on the emptiest device of a node that has fewest copies of the group.
    2. Context shards, then routers, on the emptiest devices, evenly over the nodes.
    """
    board = _Board(fleet)
    groups = group_experts(config.num_experts, shape.groups or None)
    for copy in range(shape.copies):
        for group, experts in enumerate(groups):
            if not board.add(Part("experts", group, copy, experts), alike=f"experts {group}"):
                return None
    for index in range(shape.shards):
        board.add(Part("context shard", index), alike="context shard")
    for index in range(shape.routers):
        board.add(Part("router", index), alike="router")
    return Placement(shape, tuple(map(tuple, board.devices)))


class _Board:
    """Devices that fill up."""

    def __init__(self, fleet: Fleet) -> None:
        self.devices: list[list[Part]] = [[] for _ in range(fleet.num_devices)]
        self._nodes = [[(0, first + index) for index in range(fleet.per_node)] for first in _firsts(fleet)]
        """By node, a heap of (processes, device)."""
        self._alike: dict[tuple[str, int], int] = {}
        """By kind and node: how many are there."""

    def add(self, part: Part, *, alike: str) -> bool:
        """Put a process on the emptiest device, experts where copies are fewest; tell whether it meets none there."""
        counts = [self._alike.get((alike, node), 0) for node in range(len(self._nodes))]
        loads = [heap[0][0] for heap in self._nodes]
        first, second = (counts, loads) if part.role == "experts" else (loads, counts)
        node = min(range(len(counts)), key=lambda each: (first[each], second[each], each))
        load, chosen = self._nodes[node][0]
        if any((each.role, each.index) == (part.role, part.index) for each in self.devices[chosen]):
            return False
        heapq.heapreplace(self._nodes[node], (load + 1, chosen))
        self.devices[chosen].append(part)
        self._alike[alike, node] = counts[node] + 1
        return True


def _firsts(fleet: Fleet) -> range:
    return range(0, fleet.num_devices, fleet.per_node)
