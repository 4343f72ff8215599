"""Quantised weights where no quantised product is known to be fast: less memory, and the exact definition."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from models.linear.quantization import Int4Weight, Int8Weight


class DequantizedInt8:
    """Makes the weight anew at every call. Runs on every device.

    Args:
        weight: kept as it is.
    """

    def __init__(self, weight: Int8Weight) -> None:
        self._weight = weight
        self.num_bytes = weight.codes_OI.nbytes + weight.scale_O.nbytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return x · weightᵀ. Cost: the weight is in memory in the dtype of x for a moment."""
        product_TO = F.linear(x_TI, self._weight.codes_OI.to(x_TI.dtype))
        return (product_TO * self._weight.scale_O).to(x_TI.dtype)


class DequantizedInt4:
    """Makes the weight anew at every call. Runs on every device.

    Args:
        weight: copied, two codes to a byte.
    """

    def __init__(self, weight: Int4Weight) -> None:
        low, high = weight.codes_OI.unflatten(1, (2, -1)).unbind(1)
        self._pairs = low | (high << 4)
        self._scale, self._zero, self._num_inputs = weight.scale, weight.zero, weight.num_inputs
        self.num_bytes = self._pairs.nbytes + weight.scale.nbytes + weight.zero.nbytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return x · weightᵀ. Cost: the weight is in memory in float32 for a moment."""
        codes_OI = torch.cat((self._pairs & 15, self._pairs >> 4), dim=1)
        weight = Int4Weight(codes_OI, self._scale, self._zero, self._num_inputs)
        return F.linear(x_TI, weight.dequantized().to(x_TI.dtype))
