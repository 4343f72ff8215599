"""Weights that a file keeps as codes with scales: what the codes stand for.

fp8     e4m3 numbers, one scale for each output: released as compressed-tensors and fbgemm_fp8
int4    eight codes of 4 bits in an int32, code k in bits 4k to 4k + 3, 8 meaning zero; one scale for each group of
inputs of an output. Source: compressed-tensors, compressors/quantized_compressors/pack_quantized.py
"""

from __future__ import annotations

import torch
from torch import Tensor

CODE_DTYPES = {"F8_E4M3": torch.float8_e4m3fn, "I32": torch.int32}
"""By safetensors' names."""
CODES_PER_ELEMENT = {"F8_E4M3": 1, "I32": 8}
_BITS, _MIDDLE = 4, 8
# Numbers made at once: what that needs besides codes and weights stays in a core's cache.
_PART_NUMEL = 2**18


def write_weights(codes: Tensor, scales: Tensor, out_RC: Tensor) -> None:
    """Write the weights that codes stand for.

    Args:
        codes: [R, C] float8_e4m3fn, or [R, C / 8] int32.
        scales: [r, c], where r divides R and c divides C: each is for so many rows and columns next to each other.
        out_RC: where to, in any floating dtype, with any strides.
    """
    rows_per_scale = out_RC.shape[0] // scales.shape[0]
    height = max(1, _PART_NUMEL // (out_RC.shape[1] * rows_per_scale)) * rows_per_scale
    parts = zip(codes.split(height), scales.float().split(height // rows_per_scale), out_RC.split(height), strict=True)
    for codes_part, scales_part, out_part in parts:
        numbers = unpack_int4(codes_part) if codes.dtype == torch.int32 else codes_part
        blocks = numbers.float().view(scales_part.shape[0], rows_per_scale, scales_part.shape[1], -1)
        out_part.copy_(blocks.mul_(scales_part[:, None, :, None]).view(numbers.shape))


def unpack_int4(packed: Tensor) -> Tensor:
    """Return the codes [R, C] int32 in -8..7 of [R, C / 8] int32."""
    shifts = torch.arange(0, 32, _BITS, dtype=torch.int32)
    return ((packed[..., None] >> shifts) & 15).sub_(_MIDDLE).flatten(-2)
