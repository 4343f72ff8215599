"""Experts in the router's own process: one-GPU installs, notebooks, tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from models.llama4.mlp import Mlp
from protos.errors import NoReplica
from router.plan import DispatchPlan
from router.spread import Assignment
from router.trace import StepSpan

RunExperts = Callable[[int, Tensor, Sequence[int], Sequence[int]], Tensor]
"""(layer, hidden [N, D] sorted by expert, expert ids, token counts) -> outputs [N, D]."""
Resident = Callable[[int], Mapping[int, Mlp]]
"""MoE layer -> the weights of its experts, by logical expert, as the kernel that runs them has packed them."""

_REPLICA_ID = "local"


@dataclass(frozen=True, slots=True)
class _Done:
    """A dispatch that was computed when it was made."""

    outputs_ND: Tensor
    num_neighbours: int = 0

    def wait(self) -> Tensor:
        return self.outputs_ND

    def give_up(self) -> None:
        """Do nothing: it is done."""


class LocalTransport:
    """Calls the experts directly.

    Args:
        run_experts: holds every expert. A callable, because router and experts never import each other: who puts
            the two together passes it in.
        resident: where a step finds the weights themselves, if it is to run them as a part of its own; None: nowhere.
    """

    def __init__(self, run_experts: RunExperts, resident: Resident | None = None) -> None:
        self.on_wait: Callable[[], None] = lambda: None
        """Never called: nothing here waits."""
        self.trace: StepSpan | None = None
        """Never asked: no other process is."""
        self.resident = resident
        self._run_experts = run_experts

    @property
    def lacking(self) -> NoReplica | None:
        """Return None: nothing is."""
        return None

    def assign(self, token_counts: Mapping[int, int]) -> Assignment:
        """Name this process."""
        return {expert: ((_REPLICA_ID, count),) for expert, count in token_counts.items()}

    def dispatch(self, layer: int, plan: DispatchPlan, hidden_ND: Tensor) -> _Done:
        """Run the experts now."""
        if not plan.shares:
            return _Done(hidden_ND)
        (share,) = plan.shares
        return _Done(self._run_experts(layer, hidden_ND, share.expert_ids, share.token_counts))

    def close(self) -> None:
        """Do nothing: there is nothing to give up."""
