"""Weights that a file keeps as codes with scales: what the codes stand for.

fp8     e4m3 numbers, one scale for each output: released as compressed-tensors and fbgemm_fp8
int4    eight codes of 4 bits in an int32, code k in bits 4k to 4k + 3, 8 meaning zero; one scale for each group of
        inputs of an output. Source: compressed-tensors, compressors/quantized_compressors/pack_quantized.py
pairs   two codes of 4 bits in an int8, in two's complement, that of the even input in the low half; scales as int4.
        Source: meta-llama/llama-models, models/quantize_impls.py, `pack_int4`
"""

from __future__ import annotations

import torch
from torch import Tensor

CODE_DTYPES = {"F8_E4M3": torch.float8_e4m3fn, "I32": torch.int32, "I8": torch.int8}
"""By safetensors' names."""
CODES_PER_ELEMENT = {"F8_E4M3": 1, "I32": 8, "I8": 2}
_MIDDLE = 8
_BOTH_MIDDLES = 0x88
# Numbers made at once: what that needs besides codes and weights stays in a core's cache.
_PART_NUMEL = 2**18


def write_weights(codes: Tensor, scales: Tensor, out_RC: Tensor) -> None:
    """Write the weights that codes stand for.

    Args:
        codes: [R, C] float8_e4m3fn, or uint8 in 0..15, of which 8 means zero, or eight such to an int32, [R, C / 8].
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
    codes = unpack_int4(codes) if codes.dtype == torch.int32 else codes
    numbers = codes.float().sub_(_MIDDLE) if codes.dtype == torch.uint8 else codes.float()
    blocks = numbers.view(scales.shape[0], out_RC.shape[0] // scales.shape[0], scales.shape[1], -1)
    out_RC.copy_(blocks.mul_(scales.float()[:, None, :, None]).view(numbers.shape))


def unpack_codes(codes: Tensor, is_packed_by_column: bool) -> Tensor:
    """Return codes [R, C] as they are multiplied: float8_e4m3fn, or uint8 in 0..15, of which 8 means zero.

    Args:
        codes: as they are stored.
        is_packed_by_column: whether the codes of an int8 are below each other, not beside each other.
    """
    if codes.dtype == torch.int8:
        return unpack_pairs(codes, is_by_column=is_packed_by_column)
    return unpack_int4(codes) if codes.dtype == torch.int32 else codes


def unpack_int4(packed: Tensor) -> Tensor:
    """Return the codes [R, C] uint8 in 0..15, of which 8 means zero, of [R, C / 8] int32."""
    return _halves(packed.contiguous().view(torch.uint8), dim=2)  # little-endian: the first codes come first


def unpack_pairs(packed: Tensor, *, is_by_column: bool) -> Tensor:
    """Return the codes uint8 in 0..15, of which 8 means zero, of int8s that hold two in two's complement.

    Args:
        packed: [R, C / 2] int8, or [R / 2, C] if is_by_column.
        is_by_column: whether the two are below each other, not beside each other.

    Returns:
        [R, C].
    """
    return _halves(packed.contiguous().view(torch.uint8) ^ _BOTH_MIDDLES, dim=1 if is_by_column else 2)


def _halves(pairs: Tensor, dim: int) -> Tensor:
    """Return the low and high halves of bytes [R, C] next to each other, in rows (1) or columns (2)."""
    rows, columns = pairs.shape
    codes = torch.empty((rows, 2, columns) if dim == 1 else (rows, columns, 2), dtype=torch.uint8)
    low, high = codes.unbind(dim)
    torch.bitwise_and(pairs, 15, out=low)
    torch.bitwise_right_shift(pairs, 4, out=high)
    return codes.flatten(0, 1) if dim == 1 else codes.flatten(1)
