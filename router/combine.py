"""Combine: the experts' outputs go back to their tokens."""

from __future__ import annotations

from torch import Tensor

from router.plan import DispatchPlan


def combine(base_TD: Tensor, outputs_ND: Tensor, plan: DispatchPlan) -> Tensor:
    """Return the base plus each token's expert outputs.

    An unweighted sum: the score was multiplied into the experts' input. A token's outputs are added in the order of
    its choices, so that the sum is the same whichever replicas ran them.

    Args:
        base_TD: [T, D], what every token has besides (the shared expert's output).
        outputs_ND: [N, D] in the plan's order.
        plan: as dispatched.
    """
    outputs_ND = outputs_ND.to(base_TD.dtype)
    if plan.num_choices == 1:
        return base_TD.index_add(0, plan.slots_N, outputs_ND)
    num_tokens, width = base_TD.shape
    chosen_SD = base_TD.new_zeros(num_tokens * plan.num_choices, width).index_copy_(0, plan.slots_N, outputs_ND)
    return base_TD + chosen_SD.view(num_tokens, plan.num_choices, width).sum(dim=1)
