"""What every expert kernel offers, whatever the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from models.arena import Arena
from models.linear import Rounded
from models.llama4.mlp import Mlp


class Kernel(Protocol):
    """Computes down(silu(gate(x)) * up(x)) for tokens sorted by expert.

    A kernel packs the weights it runs: layout and code belong together.
    """

    def pack(self, gate_up_D2F: Tensor, down_FD: Tensor, arena: Arena | None = None) -> Mlp:
        """Return an expert's weights as this kernel wants them.

        The arguments may be freed after, and overwritten if they are on the CPU.

        Args:
            gate_up_D2F: [D, 2F] with any strides, the gate's F columns first.
            down_FD: [F, D] with any strides.
            arena: where to put them, for kernels that can choose; None: each matrix in memory of its own.
        """

    def pack_rounded(self, gate_up: Rounded, down: Rounded, dtype: torch.dtype, arena: Arena) -> Mlp:
        """Return what `pack` would make of weights in a dtype that round to these; as lasting as there.

        Args:
            gate_up: [2F, D].
            down: [D, F].
            dtype: of the weights before they were rounded.
            arena: where to put them.
        """

    def bytes_per_weight(self, dtype: torch.dtype) -> float:
        """Return the bytes a packed number takes, of weights in a dtype."""

    def run(self, experts: Sequence[Mlp], token_counts: Sequence[int], hidden_ND: Tensor) -> Tensor:
        """Return the experts' outputs [N, D], in the dtype and order of the tokens.

        Args:
            experts: packed by this kernel.
            token_counts: rows of `hidden_ND` for each of `experts`, in their order; they sum to N, zeros are legal.
            hidden_ND: [N, D] in the weights' dtype, already multiplied by the scores; only read.
        """
