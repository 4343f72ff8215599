"""The fastest experts torch has on a CPU: one after the other, over weights packed at load.

What is packed how, and how fast that is: `models.linear`. (negative) Products of all experts in one call, measured on
one core of an AMD EPYC (Zen 5, AVX-512, bf16, busy with other work), torch 2.13, 2026-11-21, us of processor time for
all experts with the same number of tokens each:

                                   fp32, tokens each:   1      4      8     32     bf16:   1      4      8     32
    D = 256, F = 144, 8 experts    in turn            404    418    562    984           445    475    518    566
                                   _grouped_mm        357    356    472   1061           446    476    618    673
                                   bmm                291    365    420    987           286    242    319    451
    D = 768, F = 1536, 16 experts  in turn          10694  11791  11339  25649          4462   5754   6789  14053
                                   _grouped_mm      12795  25536  25152  54570         12067  13229  14289  21178
                                   bmm              12087  28257  24960  54914         11210  11834  13063  20625

Torch's grouped product loops over the experts, too, with products that know no packed weights. `bmm` wants every expert
to have as many tokens as every other, which no router gives. One silu for all experts of a dispatch, between their
products, gains 7 % at 2 tokens per expert and loses at 1 and 32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.arena import Arena
from models.cpu.tensors import swiglu
from models.linear import BITS_PER_WEIGHT, Quantization, Rounded, pack_linear, pack_rounded
from models.llama4.mlp import Mlp


class TorchCpuKernel:
    """Runs the experts in one call where the CPU has kernels for their weights (`models.cpu`), else in turn.

    Rows are views, and outputs are joined only if there are several.

    Args:
        quantize: how to round weights; None: not at all.
    """

    def __init__(self, quantize: Quantization | None = None) -> None:
        self._quantize = quantize

    def pack(self, gate_up_D2F: Tensor, down_FD: Tensor, arena: Arena | None = None) -> Mlp:
        """Pack both products. Cost: both forms are in memory for a moment."""
        return Mlp(*(pack_linear(each.t(), self._quantize, arena) for each in (gate_up_D2F, down_FD)))

    def pack_rounded(self, gate_up: Rounded, down: Rounded, dtype: torch.dtype, arena: Arena) -> Mlp:
        """Pack both products."""
        return Mlp(*(pack_rounded(each, dtype, arena) for each in (gate_up, down)))

    def bytes_per_weight(self, dtype: torch.dtype) -> float:
        """Return the dtype's bytes, or what rounding leaves of them."""
        return BITS_PER_WEIGHT[self._quantize] / 8 if self._quantize else dtype.itemsize

    def run(self, experts: Sequence[Mlp], token_counts: Sequence[int], hidden_ND: Tensor) -> Tensor:
        """Run the experts."""
        if len(experts) == 1:
            return experts[0](hidden_ND)
        held = [rows for expert in experts if (rows := expert.rows)]
        if len(held) == len(experts):
            return swiglu(held, token_counts, hidden_ND.contiguous())
        parts_nD = hidden_ND.split(list(token_counts))
        return torch.cat([expert(part_nD) for expert, part_nD in zip(experts, parts_nD, strict=True)])
