"""Combine: the experts' outputs go back to their tokens."""

from __future__ import annotations

from torch import Tensor


def combine(base_TD: Tensor, outputs_ND: Tensor, slots_N: Tensor, num_choices: int) -> Tensor:
    """Return the base plus each token's expert outputs.

    An unweighted sum: the score was multiplied into the experts' input. A token's outputs are added in the order of
    its choices, so that the sum is the same whichever replicas ran them.

    Args:
        base_TD: [T, D], what every token has besides (the shared expert's output).
        outputs_ND: [N, D], in any order.
        slots_N: [N] int64, of which of the [T · K] choices each is.
        num_choices: of each token [K].
    """
    outputs_ND = outputs_ND.to(base_TD.dtype)
    if num_choices == 1:
        return base_TD.index_add(0, slots_N, outputs_ND)
    num_tokens, width = base_TD.shape
    chosen_SD = base_TD.new_zeros(num_tokens * num_choices, width).index_copy_(0, slots_N, outputs_ND)
    return base_TD + chosen_SD.view(num_tokens, num_choices, width).sum(dim=1)
