"""Products with 4-bit weights on an x86 CPU: torch's own for few rows, of the weight made anew for many.

They compute in bfloat16 whatever the rows are in: torch's product has no fast path for float32. Times: `int8` has
them beside the others. A weight of 3072 x 768 is made anew in 1,500 us; multiplying by it takes, in us:

    rows:                       64     128     256
    torch's 4-bit product     1995    4052    7897
    made anew, then bf16      3005    3787    5204
    packed in bf16             892    1646    2907

Groups of 128 inputs are no faster than groups of 32.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from models.linear.quantization import INT4_GROUP, Int4Weight, quantize_int4

# Outputs that torch packs together where it has AVX-512.
_BLOCK = 64
# Fewest rows for which making the weight anew costs less than torch's 4-bit product loses.
_MANY_ROWS = 128
# Weights made anew at once, in elements: 16 MiB.
_MOST_ANEW = 2**23


class Int4Linear:
    """A weight in torch's 4-bit layout, scales and zeros beside it.

    The layout is [O / 64, I, 32] bytes: output j of a block is the low half of byte j, output j + 32 the high half.

    Args:
        weight: copied, with outputs and inputs filled up to whole blocks and groups.
    """

    def __init__(self, weight: Int4Weight) -> None:
        num_outputs, num_inputs = weight.codes_OI.shape
        self._num_outputs = num_outputs
        self._fill = num_inputs - weight.num_inputs
        rows = (0, 0, 0, -num_outputs % _BLOCK)
        codes_OI = F.pad(weight.codes_OI, rows)
        # In parts, because torch wants them in 32 bits.
        self._packed = torch.cat([_pack(part_OI.int()) for part_OI in codes_OI.split(64 * _BLOCK)])
        # [I / INT4_GROUP, O, 2]
        scales = (F.pad(values, rows).t() for values in (weight.scale, weight.zero))
        self._scale_and_zero = torch.stack(tuple(scales), dim=-1)
        self.num_bytes = self._packed.nbytes + self._scale_and_zero.nbytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return x · weightᵀ. Cost: for many rows, up to 16 MiB of the weight in bfloat16 for a moment."""
        rows_TI = x_TI.to(torch.bfloat16)
        if self._fill:
            rows_TI = F.pad(rows_TI, (0, self._fill))
        few = x_TI.shape[0] < _MANY_ROWS
        product_TO = self._few(rows_TI) if few else self._many(rows_TI)
        return product_TO[:, : self._num_outputs].to(x_TI.dtype)

    def _few(self, x_TI: Tensor) -> Tensor:
        product_TO: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x_TI, self._packed, INT4_GROUP, self._scale_and_zero
        )
        return product_TO

    def _many(self, x_TI: Tensor) -> Tensor:
        pairs = self._packed.view(-1, x_TI.shape[1], _BLOCK // 2)
        num_blocks = max(1, _MOST_ANEW // (x_TI.shape[1] * _BLOCK))
        scales = self._scale_and_zero.split(num_blocks * _BLOCK, dim=1)
        parts = zip(pairs.split(num_blocks), scales, strict=True)
        return torch.cat([torch.mm(x_TI, _unpack(*part)) for part in parts], dim=1)


def _pack(codes_OI: Tensor) -> Tensor:
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes_OI, 1)
    return packed


def _unpack(pairs: Tensor, scale_and_zero: Tensor) -> Tensor:
    """Return blocks of a weight as one matrix [I, o] bfloat16.

    Args:
        pairs: [o / 64, I, 32] uint8.
        scale_and_zero: [I / INT4_GROUP, o, 2] bfloat16.
    """
    num_blocks, num_inputs, half = pairs.shape
    weight = torch.empty(num_inputs, num_blocks, 2 * half, dtype=torch.bfloat16)
    by_block = weight.transpose(0, 1)
    by_block[..., :half] = pairs & 15
    by_block[..., half:] = pairs >> 4
    scale, zero = scale_and_zero[:, None].unbind(-1)
    zero_of_code_0 = (zero.float() - 8 * scale.float()).bfloat16()
    groups: Tensor = weight.view(-1, INT4_GROUP, num_blocks * 2 * half)
    return groups.mul_(scale.contiguous()).add_(zero_of_code_0).flatten(0, 1)


@cache
def _is_layout_known() -> bool:
    """Tell whether this build of torch, on this CPU, multiplies 4-bit weights fast, in the layout `_many` unpacks."""
    try:
        if torch.backends.cpu.get_cpu_capability() != "AVX512":
            return False
        weight = quantize_int4(torch.arange(_BLOCK * 64, dtype=torch.float32).sin_().view(_BLOCK, 64))
        linear, ones = Int4Linear(weight), torch.eye(64, dtype=torch.bfloat16)
        expected = weight.dequantized().t()
        return all(
            torch.allclose(product.float(), expected, atol=2**-6) for product in (linear._few(ones), linear._many(ones))
        )
    except (AttributeError, RuntimeError):
        return False


def is_supported(device: torch.device) -> bool:
    """Tell whether 4-bit products are fast on a device."""
    return device.type == "cpu" and _is_layout_known()
