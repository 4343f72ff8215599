"""Matrix products with weights that stay: one interface, and the fastest form for a device, a dtype and a shape.

linear         what every form offers
plain          torch's own product, obviously right, everywhere
row_major      bfloat16 and int8 on a CPU, with kernels of our own
onednn         the fastest full-precision products that torch has on a CPU
quantization   how weights are rounded to 8 or 4 bits
dequantized    quantised weights, obviously right, everywhere
int8, int4     the fastest products with quantised weights on an x86 CPU
unpacked       a form's weight by rows again, to be packed elsewhere
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.arena import Arena
from models.cpu.weight import Weight, copy_weight, is_int8_supported, is_supported
from models.gpu.device import is_supported as is_gpu_supported
from models.linear import int4, int8, onednn
from models.linear.dequantized import DequantizedInt4, DequantizedInt8
from models.linear.linear import Linear
from models.linear.plain import PlainLinear
from models.linear.quantization import (
    BITS_PER_WEIGHT,
    INT4_GROUP,
    Fp8Weight,
    Int4Weight,
    Int8Weight,
    Quantization,
    Rounded,
    join_rounded,
    quantize_int4,
    quantize_int8,
    symmetric_int4,
)
from models.linear.row_major import RowMajorLinear
from protos.errors import BadConfig

_CPU = torch.device("cpu")

__all__ = [
    "BITS_PER_WEIGHT",
    "INT4_GROUP",
    "Fp8Weight",
    "Int4Weight",
    "Int8Weight",
    "Linear",
    "Quantization",
    "Rounded",
    "RowMajorLinear",
    "check_rounding",
    "join_rounded",
    "pack_linear",
    "pack_rounded",
    "share_linear",
    "symmetric_int4",
]


def check_rounding(quantize: Quantization | None, device: torch.device) -> None:
    """Refuse a rounding that nothing multiplies on a device; cheap, to be asked before weights are read.

    Raises:
        BadConfig: it is fp8, and the device no GPU that the kernels are for.
    """
    if quantize == "fp8" and not is_gpu_supported(device):
        raise BadConfig(
            f"expected a GPU of the Hopper kind or later for weights in fp8, found {device}: quantize to int8 or int4"
        )


def pack_linear(
    weight_OI: Tensor,
    quantize: Quantization | None = None,
    arena: Arena | None = None,
    *,
    for_gpu: bool | None = None,
) -> Linear:
    """Return the fastest product with a weight; the argument may be freed after, and overwritten if it is on the CPU.

    Not by the number of rows: a form that knows several ways chooses among them at each call.

    Args:
        weight_OI: [O, I], on any device, in any dtype, with any strides.
        quantize: how to round it; None: not at all.
        arena: where forms that lie on the CPU by rows take their memory; None: each its own.
        for_gpu: whether rounded ones are for a GPU's kernels; None: as the device has them.

    Raises:
        BadConfig: nothing multiplies weights rounded so on that device.
    """
    if quantize and (is_gpu_supported(weight_OI.device) if for_gpu is None else for_gpu):
        from models.gpu.linear import GpuLinear  # these build on `quantization`
        from models.gpu.weight import round_weight

        return GpuLinear(round_weight(weight_OI, quantize))
    check_rounding(quantize, weight_OI.device)
    arena = arena or Arena()
    if quantize == "int8":
        codes_OI = arena.empty(weight_OI.shape, torch.int8) if is_int8_supported(weight_OI) else None
        return _int8_form(quantize_int8(weight_OI, codes_OI), is_by_rows=codes_OI is not None)
    if quantize == "int4":
        return _int4_form(quantize_int4(weight_OI))
    if not onednn.is_supported(weight_OI):
        return PlainLinear(weight_OI.clone() if weight_OI.device.type == "cpu" else weight_OI)
    if is_supported(weight_OI):
        return RowMajorLinear(copy_weight(weight_OI, arena))
    if onednn.is_small(weight_OI):
        return onednn.SmallLinear(weight_OI)
    return onednn.PackedLinear(weight_OI)


def pack_rounded(
    weight: Rounded,
    dtype: torch.dtype,
    arena: Arena | None = None,
    *,
    device: torch.device = _CPU,
    for_gpu: bool | None = None,
) -> Linear:
    """Return the fastest product with a weight that is rounded already: its codes as they are, where they can be.

    Args:
        weight: on the CPU; may be overwritten after.
        dtype: of the weight before it was rounded, and of the rows it will be multiplied with.
        arena: where forms that lie on the CPU by rows take their memory; None: each its own.
        device: where to.
        for_gpu: as `pack_linear` has it.
    """
    if is_gpu_supported(device) if for_gpu is None else for_gpu:
        from models.gpu.linear import GpuLinear
        from models.gpu.weight import keep

        if (kept := keep(weight, dtype, device)) is not None:
            return GpuLinear(kept)
    arena = arena or Arena()
    if for_gpu or device.type != "cpu" or isinstance(weight, Fp8Weight):
        return pack_linear(weight.dequantized().to(dtype).to(device), None, arena)
    if isinstance(weight, Int4Weight):
        return _int4_form(weight)
    shape = weight.codes_OI.shape
    is_by_rows = is_int8_supported(torch.empty(1, dtype=dtype).expand(shape))
    codes_OI = arena.empty(shape, torch.int8) if is_by_rows else torch.empty(shape, dtype=torch.int8)
    copy = Int8Weight(codes_OI.copy_(weight.codes_OI), weight.scale_O.clone())
    return _int8_form(copy, is_by_rows=is_by_rows)


def _int4_form(rounded: Int4Weight) -> Linear:
    is_fast = int4.is_supported(rounded.codes_OI.device)
    return int4.Int4Linear(rounded) if is_fast else DequantizedInt4(rounded)


def _int8_form(rounded: Int8Weight, *, is_by_rows: bool) -> Linear:
    if is_by_rows:
        return RowMajorLinear(Weight(rounded.codes_OI, rounded.scale_O))
    levels = int8.num_levels(rounded.codes_OI.device)
    return int8.Int8Linear(rounded, levels) if levels else DequantizedInt8(rounded)


def share_linear(weight_OI: Tensor) -> Linear:
    """Return the fastest product with a weight that others read too: no bytes besides the argument's."""
    if is_supported(weight_OI):
        return RowMajorLinear(Weight(weight_OI.contiguous()))
    return onednn.UnpackedLinear(weight_OI) if onednn.is_supported(weight_OI) else PlainLinear(weight_OI)
