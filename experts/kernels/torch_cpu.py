"""The fastest expert torch has on a CPU: oneDNN matrix products over weights packed at load.

Measured on one core of an AMD EPYC (Zen 5, AVX-512, shared machine), torch 2.13, 2026-11-21, us per expert with
D = 768, F = 1536, the experts taken in turn so that their weights come from memory:

                                fp32, tokens:   1     16     256      bf16:   1     16     256
    x @ W [in, out]                           601   2043   18322            698    895    4603
    linear(x, W [out, in])                    833   1973   18274            494    678    4358
    packed, oneDNN                            571    892    7963            294    493    4168

Small fp32 experts are left unpacked: oneDNN's operator costs 12 us a call, torch's product 4. D = 256, F = 144:

                                fp32, tokens:   1      4      8     16     64     256
    x @ W [in, out]                            15     29     40     57    155     561
    packed, oneDNN                             36     40     48     55    102     293
    oneDNN on W [in, out] as it is             36     38     46     54     99     298

A packing made without a batch size serves all of them; one made for a single token is slower for every other number.
Gate and up as one product beat two with silu and multiplication fused into them below 16 tokens and equal them above.
One silu for all experts of a dispatch, between their products, gains 7 % at 2 tokens per expert and loses at 1 and 32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from experts.kernels.kernel import PackedExpert

# In elements of `gate_up`; at twice the size torch's product no longer gains for a single token.
_SMALL_EXPERT = 2**17
# Most tokens of a small expert that torch's own product runs as fast as oneDNN's.
_FEW_TOKENS = 8


class PackedCpuKernel:
    """Uses the operators that torch's own compiler emits for a frozen linear layer on a CPU."""

    def pack(self, gate_up_D2F: Tensor, down_FD: Tensor) -> PackedExpert:
        """Reorder weights into oneDNN's blocks. Cost: both forms are in memory for a moment."""
        if gate_up_D2F.dtype == torch.float32 and gate_up_D2F.numel() <= _SMALL_EXPERT:
            return PackedExpert(gate_up_D2F, down_FD)
        return PackedExpert(_pack(gate_up_D2F.t()), _pack(down_FD.t()))

    def run(self, experts: Sequence[PackedExpert], token_counts: Sequence[int], hidden_ND: Tensor) -> Tensor:
        """Run one expert after the other; rows are views, and outputs are joined only if there are several."""
        # Applies torch.set_num_threads to this thread. oneDNN's products do not do so themselves: in a thread where
        # nothing else of torch ran before, they take every core, and wait milliseconds for one that is busy.
        torch.get_num_threads()
        if len(experts) == 1:
            return _run_expert(experts[0], hidden_ND)
        parts_nD = hidden_ND.split(list(token_counts))
        return torch.cat([_run_expert(*pair) for pair in zip(experts, parts_nD, strict=True)])


@cache
def is_supported(dtype: torch.dtype) -> bool:
    """Tell whether this build of torch, on this CPU, packs and multiplies such weights natively."""
    try:
        if not torch.backends.mkldnn.is_available():
            return False
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        one = torch.ones(1, 1, dtype=dtype)
        return dtype in (torch.float32, torch.bfloat16) and bool(_linear(one, _pack(one)) == one)
    except (AttributeError, RuntimeError):
        return False


def _pack(weight: Tensor) -> Tensor:
    """Return a weight [out, in] in oneDNN's blocked layout, for any number of tokens."""
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, None)
    return packed


def _linear(hidden: Tensor, packed: Tensor) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(hidden, packed, None, "none", [], "")
    return product


def _product(hidden_nX: Tensor, weight: Tensor) -> Tensor:
    """Multiply by a packed weight, or by one of a small expert that is [in, out] as it was."""
    if weight.is_mkldnn:
        return _linear(hidden_nX, weight)
    return torch.mm(hidden_nX, weight) if hidden_nX.shape[0] <= _FEW_TOKENS else _linear(hidden_nX, weight.t())


def _run_expert(expert: PackedExpert, hidden_nD: Tensor) -> Tensor:
    gate_nF, up_nF = _product(hidden_nD, expert.gate_up).chunk(2, dim=-1)
    return _product(F.silu(gate_nF).mul_(up_nF), expert.down)
