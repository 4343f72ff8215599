"""The dispatch plan: routed tokens grouped by the replica that will run them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from router.spread import Assignment


@dataclass(frozen=True, slots=True)
class ReplicaShare:
    """The rows [start, stop) of a plan, which go to one replica."""

    replica_id: str
    expert_ids: tuple[int, ...]
    """Ascending."""
    token_counts: tuple[int, ...]
    """Rows of each expert, all positive; they sum to stop - start."""
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class DispatchPlan:
    """An order of the used (token, choice) slots, sorted by (replica, expert), and its cut into replicas.

    `slots_N` [N] int64 indexes the flattened [T·K] choices; `shares` cover [0, N) without gaps.
    """

    slots_N: Tensor
    num_choices: int
    shares: tuple[ReplicaShare, ...]

    @property
    def token_rows_N(self) -> Tensor:
        """Return the row [N] int64 of the token each slot belongs to."""
        return self.slots_N if self.num_choices == 1 else self.slots_N // self.num_choices


def plan_dispatch(expert_ids_TK: Tensor, assign: Callable[[Mapping[int, int]], Assignment]) -> DispatchPlan:
    """Group routed tokens by the replica that will run them.

    Args:
        expert_ids_TK: [T, K] int, logical expert per choice; -1 marks an unused slot.
        assign: (tokens by expert, ascending) -> which replicas run how many of them this time; called once if any
            expert is used. May raise NoReplica.

    Returns:
        A plan whose slots are sorted by (replica, expert, slot); replicas in the order they first occur.
    """
    # Plain integers: a step has few slots, and a tensor operation on so few costs more than the loop.
    slots_by_expert: dict[int, list[int]] = {}
    for slot, expert in enumerate(expert_ids_TK.reshape(-1).tolist()):
        if expert >= 0:
            slots_by_expert.setdefault(expert, []).append(slot)
    token_counts = {expert: len(slots_by_expert[expert]) for expert in sorted(slots_by_expert)}
    assignment = assign(token_counts) if token_counts else {}
    experts_by_replica: dict[str, list[tuple[int, list[int]]]] = {}
    for expert in token_counts:
        start, expert_slots = 0, slots_by_expert[expert]
        for replica_id, count in assignment[expert]:
            part = expert_slots[start : start + count]
            experts_by_replica.setdefault(replica_id, []).append((expert, part))
            start += count
    slots: list[int] = []
    shares: list[ReplicaShare] = []
    for replica_id, parts in experts_by_replica.items():
        start = len(slots)
        for _, part in parts:
            slots += part
        expert_ids = tuple(expert for expert, _ in parts)
        shares.append(ReplicaShare(replica_id, expert_ids, tuple(len(part) for _, part in parts), start, len(slots)))
    slots_N = torch.tensor(slots, dtype=torch.int64, device=expert_ids_TK.device)
    return DispatchPlan(slots_N, expert_ids_TK.shape[1], tuple(shares))
