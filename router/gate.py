"""The gate: which experts a token visits, and how strongly."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def route(hidden_TD: Tensor, gate_ED: Tensor, num_chosen: int) -> tuple[Tensor, Tensor]:
    """Choose each token's experts.

    The choice is made on the logits, the score is the sigmoid of each chosen logit: no softmax, no renormalising.
    Ties go to the lower expert index, so that every router and every replay chooses alike.

    Args:
        hidden_TD: [T, D], the normalised residual stream.
        gate_ED: [E, D], the gate's weights.
        num_chosen: experts per token [K].

    Returns:
        expert ids [T, K] int64 and scores [T, K] in hidden's dtype.

    Source: meta-llama/llama-models, models/llama4/moe.py; transformers `Llama4Router`.
    """
    return choose(F.linear(hidden_TD, gate_ED), num_chosen, hidden_TD.dtype)


def choose(logits_TE: Tensor, num_chosen: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Do what `route` does from the gate's logits [T, E] on; the scores are in `dtype`."""
    if num_chosen == 1:
        chosen_TK, ids_TK = logits_TE.max(dim=-1, keepdim=True)
    else:
        # A stable sort keeps equal logits in index order; topk promises no order among them.
        ordered_TE, order_TE = logits_TE.sort(dim=-1, descending=True, stable=True)
        chosen_TK, ids_TK = ordered_TE[:, :num_chosen], order_TE[:, :num_chosen]
    return ids_TK, torch.sigmoid(chosen_TK.float()).to(dtype)
