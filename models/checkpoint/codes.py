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
_MIDDLE = 8
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
    most_rows = max(1, _PART_NUMEL // out_RC.shape[1])
    if rows_per_scale > most_rows:  # few rows of scales: each by itself, in parts
        for row, (block, out) in enumerate(zip(codes.split(rows_per_scale), out_RC.split(rows_per_scale), strict=True)):
            for part, out_part in zip(block.split(most_rows), out.split(most_rows), strict=True):
                _write_part(part, scales[row : row + 1], out_part)
        return
    height = most_rows // rows_per_scale * rows_per_scale
    parts = zip(codes.split(height), scales.split(height // rows_per_scale), out_RC.split(height), strict=True)
    for codes_part, scales_part, out_part in parts:
        _write_part(codes_part, scales_part, out_part)


def _write_part(codes: Tensor, scales: Tensor, out_RC: Tensor) -> None:
    numbers = unpack_int4(codes).float().sub_(_MIDDLE) if codes.dtype == torch.int32 else codes.float()
    blocks = numbers.view(scales.shape[0], out_RC.shape[0] // scales.shape[0], scales.shape[1], -1)
    out_RC.copy_(blocks.mul_(scales.float()[:, None, :, None]).view(numbers.shape))


def unpack_int4(packed: Tensor) -> Tensor:
    """Return the codes [R, C] uint8 in 0..15, of which 8 means zero, of [R, C / 8] int32."""
    pairs = packed.contiguous().view(torch.uint8)  # little-endian: the first codes come first
    codes = torch.empty(*pairs.shape, 2, dtype=torch.uint8)
    torch.bitwise_and(pairs, 15, out=codes[..., 0])
    torch.bitwise_right_shift(pairs, 4, out=codes[..., 1])
    return codes.flatten(-2)
