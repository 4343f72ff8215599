"""Combine: the experts' outputs go back to their tokens."""

from __future__ import annotations

from torch import Tensor

from router.plan import DispatchPlan


def combine(base_TD: Tensor, outputs_ND: Tensor, plan: DispatchPlan) -> Tensor:
    """Return the base plus each token's expert outputs.

    An unweighted sum: the score was multiplied into the experts' input.

    Args:
        base_TD: [T, D], what every token has besides (the shared expert's output).
        outputs_ND: [N, D] in the plan's order.
        plan: as dispatched.
    """
    return base_TD.index_add(0, plan.token_rows_N, outputs_ND.to(base_TD.dtype))
