"""Products with 8-bit weights on an x86 CPU: oneDNN's 8-bit products, over weights packed at load.

They multiply 8-bit by 8-bit numbers, so rows of activations are rounded too, each to its own scale at every call: what
a row gives does not depend on the rows beside it.

Measured on one core of an AMD EPYC (Zen 5, AVX-512, VNNI, busy with other work), torch 2.13, 2026-11-21, us of
processor time per product of float32 rows, rounding of rows included, weights taken in turn so that they come from
memory:

    O x I          rows:           1       8      32     256    1024
    768 x 1536     fp32          172     276     513    2895   11145
                   bf16           94     130     247    1440    5717
                   int8           99     121     192     955    4058
                   int4           49     141     506    2700    7100
    3072 x 768     fp32          388     558    1108    5725   22351
                   bf16          188     280     549    2766   11119
                   int8          146     187     331    1669    6818
                   int4          100     280    1030    5200
    32000 x 768    fp32         3330    4999   10163
                   bf16         1652    2477    5163
                   int8         1118    1750    3342
                   int4          930    3019   11443

Of a call, 11 us at 1 row and 17 us at 32 round the rows, and 18 us are the price of calling oneDNN's operator: weights
of fewer than some 200,000 numbers are faster in full precision.

Others in torch, (negative): `_weight_int8pack_mm` keeps rows in bf16 and takes 158, 301, 1019 and 7794 us at 1, 8, 32
and 256 rows of 3072 x 768, and 1600 for one row in float32; `quantized.linear_dynamic` (fbgemm) is as fast as oneDNN
but has one scale for all rows, so that a token would change with its batch, and makes tensors of deprecated types;
oneDNN with signed rows runs its reference, 60 times slower for one row and worse for more.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from models.linear.quantization import INT8_LEVELS, Int8Weight

# Processors without VNNI add pairs of 8-bit products in 16 bits. Those of 7-bit rows fit; of 8-bit rows they do not,
# which costs 5 % of a product of positive numbers.
_LEVELS_OF_16_BIT_SUMS = 63


_TINY = torch.finfo(torch.float32).tiny


class Int8Linear:
    """Rows and weight in 8 bits, sums in 32.

    Args:
        weight: copied into oneDNN's blocks.
        levels: steps from 0 to a row's largest number.
    """

    def __init__(self, weight: Int8Weight, levels: int) -> None:
        self._packed = _pack(weight.codes_OI)
        self._scale_O = weight.scale_O
        self._zero = torch.zeros(1, dtype=torch.int32)
        self._levels = levels
        self.num_bytes: int = torch.ops.mkldnn._nbytes(self._packed) + weight.scale_O.nbytes

    def __call__(self, x_TI: Tensor) -> Tensor:
        """Return x · weightᵀ."""
        scale_T1 = x_TI.abs().amax(1, keepdim=True).float().mul_(1 / self._levels).clamp_min_(_TINY)
        # oneDNN's fast products take unsigned codes, but torch converts float32 to signed ones faster: the sum wraps.
        middle = self._levels + 1
        codes_TI = torch.div(x_TI, scale_T1).round_().to(torch.int8).view(torch.uint8).add_(middle)
        product_TO = _product(codes_TI, middle, self._packed, self._scale_O, self._zero)
        return product_TO.mul_(scale_T1).to(x_TI.dtype)


def num_levels(device: torch.device) -> int:
    """Return the steps from 0 to a row's largest number that a device adds up exactly; 0: it has no fast product."""
    return _num_levels_of_cpu() if device.type == "cpu" else 0


@cache
def _num_levels_of_cpu() -> int:
    try:
        # On other processors than x86 the product may be oneDNN's reference, 60 times slower than multiplying floats.
        if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
            return 0
        inputs, levels = 64, INT8_LEVELS
        packed = _pack(torch.full((16, inputs), INT8_LEVELS, dtype=torch.int8))
        codes = torch.full((1, inputs), 2 * levels + 1, dtype=torch.uint8)
        found = _product(codes, levels + 1, packed, torch.ones(16), torch.zeros(1, dtype=torch.int32))
        return levels if bool((found == inputs * levels * INT8_LEVELS).all()) else _LEVELS_OF_16_BIT_SUMS
    except (AttributeError, RuntimeError):
        return 0


def _pack(codes_OI: Tensor) -> Tensor:
    packed: Tensor = torch.ops.onednn.qlinear_prepack(codes_OI.contiguous(), None)
    return packed


def _product(codes_TI: Tensor, middle: int, packed: Tensor, scale_O: Tensor, zero: Tensor) -> Tensor:
    torch.get_num_threads()  # why: models.linear.onednn
    product_TO: Tensor = torch.ops.onednn.qlinear_pointwise(
        codes_TI, 1.0, middle, packed, scale_O, zero, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return product_TO
