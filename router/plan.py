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
    num_choices = expert_ids_TK.shape[1]
    ids_S = expert_ids_TK.reshape(-1).to("cpu", torch.int64)
    used_S = (ids_S >= 0).nonzero().squeeze(1)
    counts = torch.bincount(ids_S[used_S]).tolist() if used_S.numel() else []
    replica_of = {expert: choose_replica(expert) for expert, count in enumerate(counts) if count}
    experts_of: dict[str, list[int]] = {}
    for expert, replica_id in replica_of.items():
        experts_of.setdefault(replica_id, []).append(expert)
    # rank_E sorts experts by (replica, expert): a stable sort of the slots by rank is the plan's order.
    shares, rank_E, rank, start = [], torch.zeros(max(len(counts), 1), dtype=torch.int64), 0, 0
    for replica_id, experts in experts_of.items():
        share_counts = tuple(counts[expert] for expert in experts)
        for expert in experts:
            rank_E[expert] = rank
            rank += 1
        shares.append(ReplicaShare(replica_id, tuple(experts), share_counts, start, start + sum(share_counts)))
        start += sum(share_counts)
    order_N = torch.argsort(rank_E[ids_S[used_S]], stable=True)
    return DispatchPlan(used_S[order_N].to(expert_ids_TK.device), num_choices, tuple(shares))
