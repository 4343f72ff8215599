"""The expert written down once, in plain torch: what the other kernels are compared with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from experts.kernels.kernel import PackedExpert


class ReferenceKernel:
    """Runs on every device and in every dtype that torch multiplies matrices in."""

    def pack(self, gate_up_D2F: Tensor, down_FD: Tensor) -> PackedExpert:
        """Keep the weights as the checkpoint has them."""
        return PackedExpert(gate_up_D2F, down_FD)

    def run(self, experts: Sequence[PackedExpert], token_counts: Sequence[int], hidden_ND: Tensor) -> Tensor:
        """Run one expert after the other."""
        outputs_ND = torch.empty_like(hidden_ND)
        start = 0
        for expert, count in zip(experts, token_counts, strict=True):
            rows = slice(start, start + count)
            gate_nF, up_nF = (hidden_ND[rows] @ expert.gate_up).chunk(2, dim=-1)
            outputs_ND[rows] = (F.silu(gate_nF) * up_nF) @ expert.down
            start += count
        return outputs_ND
