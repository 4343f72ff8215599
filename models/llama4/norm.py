"""Root-mean-square normalisation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x_TD: Tensor, weight_D: Tensor | None, eps: float) -> Tensor:
    """Scale each row to unit mean square.

    Args:
        x_TD: [..., D] any float dtype; normalised over the last axis, in float32.
        weight_D: [D], multiplied after the cast back to x's dtype; None: no weight (QK norm).
        eps: added to the mean square.

    Source: Zhang and Sennrich 2019; the order cast-then-weight is Llama's (llama-models, `RMSNorm`).
    """
    normed_TD = F.rms_norm(x_TD, x_TD.shape[-1:], eps=eps)
    return normed_TD if weight_D is None else normed_TD * weight_D
