"""The fastest full-precision products torch has on a CPU: oneDNN's, over weights packed at load.

The operators are those that torch's own compiler emits for a frozen linear layer on a CPU. Measured on one core of an
AMD EPYC (Zen 5, AVX-512, bf16, shared machine), torch 2.13, 2026-11-21, us per product, weights taken in turn so that
they come from memory:

    O x I          rows:           fp32:   1      8     64      bf16:   1      8     64
    768 x 768      F.linear              146    245    858             92    114    303
                   oneDNN, as it is      106    167    437             93    106    244
                   oneDNN, packed         85    128    391             50     74    208
    6000 x 256     F.linear              476    758   2338            254    280    634
                   oneDNN, as it is      284    455   1158            257    278    640
                   oneDNN, packed        209    298   1016            110    157    507

oneDNN's operator costs 12 us a call, torch's product 4, so small fp32 weights are not packed:

    288 x 256      x @ W [in, out]         9     22    105             17     19     37
                   oneDNN, packed         17     22     86             13     14     34
                   oneDNN on W [in, out]  17     21     57             17     18     36

A packing made without a batch size serves all of them; one made for a single row is slower for every other number.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

# In elements; at twice the size torch's product no longer gains for a single row.
_SMALL_WEIGHT = 2**17
# Most rows that torch's own product multiplies by a small weight as fast as oneDNN's.
_FEW_ROWS = 8


class PackedLinear:
    """A weight reordered into oneDNN's blocks, for any number of rows.

    Args:
        weight_OI: [O, I] float32 or bfloat16; both forms are in memory for a moment.
    """

    def __init__(self, weight_OI: Tensor) -> None:
        self._packed = _pack(weight_OI)
        self.num_bytes: int = torch.ops.mkldnn._nbytes(self._packed)

    def unpacked(self) -> Tensor:
        """Return the weight [O, I] that was packed: a copy."""
        return self._packed.to_dense()

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return x · weightᵀ."""
        return _product(x_TI, self._packed)


class SmallLinear:
    """A weight whose product is cheaper than a call of oneDNN, for few rows.

    Args:
        weight_OI: [O, I] float32; copied.
    """

    def __init__(self, weight_OI: Tensor) -> None:
        self._weight_IO = weight_OI.t().clone(memory_format=torch.contiguous_format)
        self.num_bytes = self._weight_IO.nbytes

    def unpacked(self) -> Tensor:
        """Return the weight [O, I] that was packed: a view."""
        return self._weight_IO.t()

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return x · weightᵀ."""
        if x_TI.shape[0] <= _FEW_ROWS:
            return torch.mm(x_TI, self._weight_IO)
        return _product(x_TI, self._weight_IO.t())


class UnpackedLinear:
    """A weight that others read as well, such as a tied embedding matrix.

    Args:
        weight_OI: [O, I] float32 or bfloat16; kept as it is, not copied.
    """

    def __init__(self, weight_OI: Tensor) -> None:
        self._weight_OI = weight_OI
        self.num_bytes = weight_OI.nbytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return x · weightᵀ."""
        return _product(x_TI, self._weight_OI)


def is_supported(weight: Tensor) -> bool:
    """Tell whether this build of torch, on this CPU, packs and multiplies such a weight natively."""
    return weight.device.type == "cpu" and _is_dtype_supported(weight.dtype)


def is_small(weight: Tensor) -> bool:
    """Tell whether a weight is one for `SmallLinear`."""
    return weight.dtype == torch.float32 and weight.numel() <= _SMALL_WEIGHT


@cache
def _is_dtype_supported(dtype: torch.dtype) -> bool:
    try:
        if not torch.backends.mkldnn.is_available():
            return False
        if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        one = torch.ones(1, 1, dtype=dtype)
        return dtype in (torch.float32, torch.bfloat16) and bool(_product(one, _pack(one)) == one)
    except (AttributeError, RuntimeError):
        return False


def _pack(weight_OI: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight_OI, None)
    return packed


def _product(x_TI: Tensor, weight: Tensor) -> Tensor:
    # Applies torch.set_num_threads to this thread. oneDNN's products do not do so themselves: in a thread where
    # nothing else of torch ran before, they take every core, and wait milliseconds for one that is busy.
    torch.get_num_threads()
    product_TO: Tensor = torch.ops.mkldnn._linear_pointwise(x_TI, weight, None, "none", [], "")
    return product_TO
