"""SwiGLU blocks down(silu(gate(x)) * up(x)) on a GPU, many in one launch for each of their two products.

    gate and up    a program holds some rows of gate, the same rows of up, and some tokens: silu and multiplication need
                   nothing from memory
    down           `product`

A token's inner numbers go through memory once, [N, F]; a weight is read once for each tile of tokens. Source: Shazeer
2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.gpu.product import Launch, constants, grouped_product, multiply, tile_of
from models.gpu.tiles import tile_table
from models.gpu.weight import GpuWeight


@dataclass(frozen=True, slots=True)
class Block:
    """The weights of one SwiGLU block."""

    gate_up: GpuWeight
    """[2F, D], the gate's F rows first."""
    down: GpuWeight
    """[D, F]."""


@triton.jit
def gate_up_kernel(
    x_ptr,  # [N, width]
    tiles_ptr,  # [tiles, 4] int64: see `tiles`
    out_ptr,  # [N, inner]
    width,
    inner,
    FORM: tl.constexpr,
    TOKENS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
    IS_WHOLE: tl.constexpr,
    IS_NATIVE: tl.constexpr,
):
    """Write silu(gate(x)) * up(x) for every tile, whose weights are [2 · inner, width]."""
    values_ptr, scale_ptr, tokens, count = tile_of(tiles_ptr, x_ptr, FORM, TOKENS)
    is_token = tl.arange(0, TOKENS) < count
    rows = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
    is_row = rows < inner
    x_ptrs = x_ptr + tokens[None, :] * width
    gate = tl.zeros((OUTPUTS, TOKENS), dtype=tl.float32)
    up = tl.zeros((OUTPUTS, TOKENS), dtype=tl.float32)
    for start in range(0, tl.minimum(count, 1).to(tl.int32) * width, INPUTS):
        gate = multiply(
            gate, values_ptr, scale_ptr, rows, is_row, 2 * inner, x_ptrs, is_token, start, width,
            FORM, INPUTS, IS_WHOLE, IS_NATIVE,
        )  # fmt: skip
        up = multiply(
            up, values_ptr, scale_ptr, inner + rows, is_row, 2 * inner, x_ptrs, is_token, start, width,
            FORM, INPUTS, IS_WHOLE, IS_NATIVE,
        )  # fmt: skip
    if FORM == "int8" or FORM == "fp8":
        gate *= tl.load(scale_ptr + rows, mask=is_row, other=0.0)[:, None]
        up *= tl.load(scale_ptr + inner + rows, mask=is_row, other=0.0)[:, None]
    mixed = tl.trans(gate * tl.sigmoid(gate) * up)
    out_ptrs = out_ptr + tokens[:, None] * inner + rows[None, :]
    tl.store(out_ptrs, mixed.to(out_ptr.dtype.element_ty), mask=is_token[:, None] & is_row[None, :])


@dataclass(frozen=True, slots=True)
class SwigluPlan:
    """Which tokens meet which blocks, ready for any number of calls with as many tokens."""

    like: Block
    """One of the blocks: all are of its form and shape."""
    gate_up_tiles: Tensor
    down_tiles: Tensor
    gate_up_launch: Launch
    down_launch: Launch


def plan_swiglu(
    blocks: Sequence[Block], token_counts: Sequence[int], gate_up_launch: Launch, down_launch: Launch
) -> SwigluPlan:
    """Return the plan for tokens sorted by block.

    Args:
        blocks: all of one form and shape, on one device; at least one.
        token_counts: rows of tokens for each of them, in their order; zeros are legal.
        gate_up_launch: how to cut the first product.
        down_launch: how to cut the second one.
    """
    gate_up_tiles = tile_table([block.gate_up for block in blocks], token_counts, gate_up_launch.tokens)
    down_tiles = tile_table([block.down for block in blocks], token_counts, down_launch.tokens)
    return SwigluPlan(blocks[0], gate_up_tiles, down_tiles, gate_up_launch, down_launch)


def swiglu(x_ND: Tensor, plan: SwigluPlan) -> Tensor:
    """Return the blocks' outputs [N, D], in the dtype and order of the tokens.

    Args:
        x_ND: [N, D], contiguous, on the blocks' device; bfloat16 for weights in four bits; only read.
        plan: for N tokens; the blocks' weights must be there still.
    """
    gate_up, down, launch = plan.like.gate_up, plan.like.down, plan.gate_up_launch
    assert x_ND.device == gate_up.values.device
    assert x_ND.shape[1] == gate_up.num_inputs
    if not x_ND.shape[0]:
        return torch.empty_like(x_ND)
    mixed_NF = gated_product(x_ND, plan.gate_up_tiles, gate_up, launch)
    return grouped_product(mixed_NF, plan.down_tiles, down.form, down.num_outputs, plan.down_launch)


def gated_product(x_ND: Tensor, tiles: Tensor, like: GpuWeight, launch: Launch) -> Tensor:
    """Return silu(gate(x)) * up(x) with the weight of each token's tile, [N, F] in the dtype of the tokens.

    Args:
        x_ND: [N, D], contiguous; bfloat16 for weights in four bits.
        tiles: [tiles, 4], of at most `launch.tokens` tokens each, see `tile_table`.
        like: [2F, D], of the form and shape of all weights, the gate's F rows first.
        launch: how to cut it.
    """
    inner = like.num_outputs // 2
    mixed_NF = torch.empty(x_ND.shape[0], inner, dtype=x_ND.dtype, device=x_ND.device)
    grid = (tiles.shape[0], triton.cdiv(inner, launch.outputs))
    with torch.cuda.device_of(x_ND):
        gate_up_kernel[grid](x_ND, tiles, mixed_NF, x_ND.shape[1], inner, **constants(like.form, x_ND, launch))
    return mixed_NF
