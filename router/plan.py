"""The dispatch plan: routed tokens grouped by the replica that will run them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


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


def plan_dispatch(expert_ids_TK: Tensor, choose_replica: Callable[[int], str]) -> DispatchPlan:
    """Group routed tokens by the replica that will run them.

    Args:
        expert_ids_TK: [T, K] int, logical expert per choice; -1 marks an unused slot.
        choose_replica: names the replica to run an expert this time; called once per expert used, in ascending
            order. May raise NoReplica.

    Returns:
        A plan whose slots are sorted by (replica, expert, slot); replicas in the order they were first chosen.
    """
    # Plain integers: a step has few slots, and a tensor operation on so few costs more than the loop.
    slots_by_expert: dict[int, list[int]] = {}
    for slot, expert in enumerate(expert_ids_TK.reshape(-1).tolist()):
        if expert >= 0:
            slots_by_expert.setdefault(expert, []).append(slot)
    experts_by_replica: dict[str, list[int]] = {}
    for expert in sorted(slots_by_expert):
        experts_by_replica.setdefault(choose_replica(expert), []).append(expert)
    slots: list[int] = []
    shares: list[ReplicaShare] = []
    for replica_id, experts in experts_by_replica.items():
        start = len(slots)
        for expert in experts:
            slots += slots_by_expert[expert]
        token_counts = tuple(len(slots_by_expert[expert]) for expert in experts)
        shares.append(ReplicaShare(replica_id, tuple(experts), token_counts, start, len(slots)))
    slots_N = torch.tensor(slots, dtype=torch.int64, device=expert_ids_TK.device)
    return DispatchPlan(slots_N, expert_ids_TK.shape[1], tuple(shares))
