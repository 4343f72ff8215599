"""Products of rows of tokens with weights in any form: the inner loop, and many of them in one launch.

A program holds some outputs of one weight and some tokens, and goes along the inputs:

    acc [OUTPUTS, TOKENS]  +=  weight [OUTPUTS, INPUTS] · tokens [INPUTS, TOKENS]

The weight is the left operand: tensor cores take that from registers, where rounded weights are when they have become
numbers, and they want at least 16 or 64 rows of it, while tokens may be as few as 16. Weights in four bits become
bfloat16 in one and a half instructions each: a half byte is put into the lowest bits of 128, which bfloat16 counts by
ones, and 136 is subtracted, two weights at a time.

Source of that trick: Kim et al. 2022, "Who Says Elephants Can't Run", 4.3 (there in float16).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.gpu.dot import dot
from models.gpu.tiles import FIELDS
from models.gpu.weight import GROUP, Form

_HALF_GROUP = tl.constexpr(GROUP // 2)
_GROUP = tl.constexpr(GROUP)
_FIELDS = tl.constexpr(FIELDS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Launch:
    """How a kernel is cut into programs."""

    tokens: int
    """Of a program; a power of two, at least 16."""
    outputs: int
    """Of a program; a power of two, at least 16."""
    inputs: int = GROUP
    """Of a step of its loop; a power of two, at least 16. Four bits: `GROUP`."""
    warps: int = 4
    stages: int = 4
    """Steps whose weights are on their way at once."""


@triton.jit
def unpack_int4(pairs, IS_NATIVE: tl.constexpr):
    """Return the low and the high halves of bytes as numbers from -8 to 7, two tensors of the bytes' shape.

    Byte by byte: which four of them Triton puts into one call is not told, and differs by layout.
    """
    if IS_NATIVE:
        low, high = tl.inline_asm_elementwise(
            """
            {
                .reg .b32 first, second, middle;
                mov.b32 middle, 0x43084308;
                prmt.b32 first, $4, 0, 0x4140;
                prmt.b32 second, $4, 0, 0x4342;
                lop3.b32 $0, first, 0x000F000F, 0x43004300, 0xEA;
                lop3.b32 $1, second, 0x000F000F, 0x43004300, 0xEA;
                shr.u32 first, first, 4;
                shr.u32 second, second, 4;
                lop3.b32 $2, first, 0x000F000F, 0x43004300, 0xEA;
                lop3.b32 $3, second, 0x000F000F, 0x43004300, 0xEA;
                sub.rn.bf16x2 $0, $0, middle;
                sub.rn.bf16x2 $1, $1, middle;
                sub.rn.bf16x2 $2, $2, middle;
                sub.rn.bf16x2 $3, $3, middle;
            }
            """,
            "=&r,=&r,=&r,=&r,r",
            [pairs],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=4,
        )
    else:
        low = (pairs & 15).to(tl.int8) - 8
        high = (pairs >> 4).to(tl.int8) - 8
    return low, high


@triton.jit
def e4m3_to_bfloat16(values):
    """Return fp8 numbers as bfloat16, exactly, by moving bits: the processor's own conversion takes far longer. No NaN.

    e4m3 is s eeee mmm with a bias of 7. Four bits lower in bfloat16's s eeeeeeee mmmmmmm it is 2**-120 of itself, among
    the smallest numbers (subnormal) too.
    """
    return tl.inline_asm_elementwise(
        """
        {
            .reg .b32 first, second, sign, scale;
            mov.b32 scale, 0x7B807B80;
            prmt.b32 first, $2, 0, 0x1404;
            prmt.b32 second, $2, 0, 0x3424;
            and.b32 sign, first, 0x80008000;
            shr.u32 first, first, 4;
            lop3.b32 $0, first, 0x07F007F0, sign, 0xEA;
            and.b32 sign, second, 0x80008000;
            shr.u32 second, second, 4;
            lop3.b32 $1, second, 0x07F007F0, sign, 0xEA;
            mul.rn.bf16x2 $0, $0, scale;
            mul.rn.bf16x2 $1, $1, scale;
        }
        """,
        "=&r,=&r,r",
        [values],
        dtype=tl.bfloat16,
        is_pure=True,
        pack=4,
    )


@triton.jit
def multiply(
    acc,
    values_ptr,
    scale_ptr,
    rows,
    is_row,
    num_rows,
    x_ptrs,
    is_token,
    start,
    width,
    FORM: tl.constexpr,
    INPUTS: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    IS_NATIVE: tl.constexpr,
):
    """Add the product over inputs start to start + INPUTS.

    Args:
        acc: [OUTPUTS, TOKENS] float32.
        values_ptr, scale_ptr: of the weight.
        rows, is_row: [OUTPUTS], the weight's rows and whether there are such.
        num_rows: of the weight.
        x_ptrs: [1, TOKENS], to each token's first input.
        is_token: [TOKENS].
        start: first input; of four bits, of a group.
        width: inputs.
        IS_WHOLE: width is a multiple of INPUTS.
    """
    if FORM == "int4":
        inputs = tl.arange(0, _HALF_GROUP)
        row_bytes = tl.cdiv(width, _GROUP) * _HALF_GROUP
        pair_ptrs = values_ptr + rows[:, None] * row_bytes + start // 2 + inputs[None, :]
        pairs = tl.load(tl.multiple_of(pair_ptrs, (1, 16)), mask=is_row[:, None], other=0)
        low, high = unpack_int4(pairs, IS_NATIVE)
        scale = tl.load(scale_ptr + (start // _GROUP) * num_rows + rows, mask=is_row, other=0.0).to(tl.float32)
        x_low = _tokens(x_ptrs, is_token, start + inputs, width, IS_WHOLE)
        x_high = _tokens(x_ptrs, is_token, start + inputs + _HALF_GROUP, width, IS_WHOLE)
        part = dot(_as_tokens(low, x_low, IS_NATIVE), x_low, tl.zeros_like(acc), IS_NATIVE)
        acc += dot(_as_tokens(high, x_high, IS_NATIVE), x_high, part, IS_NATIVE) * scale[:, None]
    else:
        inputs = start + tl.arange(0, INPUTS)
        weight_ptrs = values_ptr + rows[:, None] * width + inputs[None, :]
        if IS_WHOLE:
            weight = tl.load(tl.multiple_of(weight_ptrs, (1, 16)), mask=is_row[:, None], other=0.0)
        else:
            weight = tl.load(weight_ptrs, mask=is_row[:, None] & (inputs < width)[None, :], other=0.0)
        x = _tokens(x_ptrs, is_token, inputs, width, IS_WHOLE)
        acc = dot(_as_tokens(weight, x, IS_NATIVE), x, acc, IS_NATIVE)
    return acc


@triton.jit
def _as_tokens(weight, x, IS_NATIVE: tl.constexpr):
    """Return a weight's numbers in the dtype of the tokens."""
    if IS_NATIVE:
        if weight.dtype == tl.float8e4nv and x.dtype == tl.bfloat16:
            numbers = e4m3_to_bfloat16(weight)
        else:
            numbers = weight.to(x.dtype)
    else:
        numbers = weight
    return numbers


@triton.jit
def _tokens(x_ptrs, is_token, inputs, width, IS_WHOLE: tl.constexpr):
    """Return some inputs of each token, [INPUTS, TOKENS]."""
    ptrs = x_ptrs + inputs[:, None]
    if IS_WHOLE:
        x = tl.load(tl.multiple_of(ptrs, (16, 1)), mask=is_token[None, :], other=0.0)
    else:
        x = tl.load(ptrs, mask=is_token[None, :] & (inputs < width)[:, None], other=0.0)
    return x


@triton.jit
def tile_of(tiles_ptr, x_ptr, FORM: tl.constexpr, TOKENS: tl.constexpr):
    """Return what a program's line of the table says.

    Args:
        tiles_ptr: to the table, see `tiles`.
        x_ptr: to tokens, whose dtype plain weights have.

    Returns:
        Pointers to the weight and its scales; [TOKENS] int64, the tile's rows of tokens; how many there are.
    """
    line_ptr = tiles_ptr + tl.program_id(0) * _FIELDS
    values, scale = tl.load(line_ptr), tl.load(line_ptr + 1)
    first, count = tl.load(line_ptr + 2), tl.load(line_ptr + 3)
    if FORM == "int4":
        values_ptr = values.to(tl.pointer_type(tl.uint8))
        scale_ptr = scale.to(tl.pointer_type(tl.bfloat16))
    else:
        if FORM == "int8":
            values_ptr = values.to(tl.pointer_type(tl.int8))
        elif FORM == "fp8":
            values_ptr = values.to(tl.pointer_type(tl.float8e4nv))
        else:
            values_ptr = values.to(tl.pointer_type(x_ptr.dtype.element_ty))
        scale_ptr = scale.to(tl.pointer_type(tl.float32))
    return values_ptr, scale_ptr, first + tl.arange(0, TOKENS), count


@triton.jit
def grouped_product_kernel(
    x_ptr,  # [N, width]
    tiles_ptr,  # [tiles, 4] int64: see `tiles`
    out_ptr,  # [N, num_rows]
    width,
    num_rows,
    FORM: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    IS_NATIVE: tl.constexpr,
):
    """Write tokens · weightᵀ for every tile."""
    values_ptr, scale_ptr, tokens, count = tile_of(tiles_ptr, x_ptr, FORM, TOKENS)
    is_token = tl.arange(0, TOKENS) < count
    rows = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_row = rows < num_rows
    x_ptrs = x_ptr + tokens[None, :] * width
    acc = tl.zeros((OUTPUTS, TOKENS), dtype=tl.float32)
    for start in range(0, tl.minimum(count, 1).to(tl.int32) * width, INPUTS):
        acc = multiply(
            acc, values_ptr, scale_ptr, rows, is_row, num_rows, x_ptrs, is_token, start, width,
            FORM, INPUTS, IS_WHOLE, IS_NATIVE,
        )  # fmt: skip
    if FORM == "int8" or FORM == "fp8":
        acc *= tl.load(scale_ptr + rows, mask=is_row, other=0.0)[:, None]
    out_ptrs = out_ptr + tokens[:, None] * num_rows + rows[None, :]
    tl.store(out_ptrs, tl.trans(acc).to(out_ptr.dtype.element_ty), mask=is_token[:, None] & is_row[None, :])


def grouped_product(x_NI: Tensor, tiles: Tensor, form: Form, num_outputs: int, launch: Launch) -> Tensor:
    """Return each token's product with the weight of its tile, [N, O] in the dtype of the tokens.

    Args:
        x_NI: [N, I], contiguous; bfloat16 for weights in four bits.
        tiles: [tiles, 4], of at most `launch.tokens` tokens each, see `tile_table`.
        form: of all weights.
        num_outputs: O of all weights.
        launch: how to cut it.
    """
    out_NO = torch.empty(x_NI.shape[0], num_outputs, dtype=x_NI.dtype, device=x_NI.device)
    grid = (tiles.shape[0], triton.cdiv(num_outputs, launch.outputs))
    with torch.cuda.device_of(x_NI):  # Triton launches on the current device, whatever its arguments' is
        grouped_product_kernel[grid](x_NI, tiles, out_NO, x_NI.shape[1], num_outputs, **constants(form, x_NI, launch))
    return out_NO


def constants(form: Form, x_NI: Tensor, launch: Launch) -> dict[str, Any]:
    """Return what a kernel is compiled for, and how it is launched."""
    cut = cut_constants(form, launch)
    return cut | {
        "IS_WHOLE": x_NI.shape[1] % cut["INPUTS"] == 0,
        "IS_NATIVE": x_NI.is_cuda,
        "num_warps": launch.warps,
        # Launches are chosen for two bytes a number: shared memory has no room for as many steps of four.
        "num_stages": launch.stages if x_NI.element_size() <= 2 else max(1, launch.stages // 2),
    }


def cut_constants(form: Form, launch: Launch) -> dict[str, Any]:
    """Return what a kernel is compiled for, whatever the tokens."""
    inputs = GROUP if form == "int4" else launch.inputs
    return {"FORM": form, "TOKENS": launch.tokens, "OUTPUTS": launch.outputs, "INPUTS": inputs}
