"""From the gate's answers to tokens sorted by expert, on a GPU: nobody on the host learns who goes where.

A program holds one token. It looks at all tokens' answers, which are few, and so knows how many tokens each expert gets
and which of them come before its own: where the token's row goes, and which lines of the tables of tiles are its to
write. One launch for what takes a host a copy, a wait and a loop.

Source: choice and score as `router.gate.route`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.gpu.tiles import FIELDS

_MOST_ANSWERS = 16_384
"""Tokens times experts: what a program can look at in registers."""
_FIELDS = tl.constexpr(FIELDS)
_LOWEST = tl.constexpr(-3e38)
_ZERO = tl.constexpr(-80.0)
"""From here down a score is none, in any dtype."""


def can_route(num_tokens: int, num_experts: int) -> bool:
    """Tell whether so many answers are few enough."""
    return bool(triton.next_power_of_2(num_tokens) * triton.next_power_of_2(num_experts) <= _MOST_ANSWERS)


def most_tiles(num_choices: int, num_experts: int, tile_tokens: int) -> int:
    """Return the most tiles that so many choices can fall into."""
    return min(num_choices, num_experts) + num_choices // tile_tokens


@triton.jit
def route_kernel(
    logits_ptr,  # [T, num_experts] float32
    count_ptr,  # [1] int32: tokens that are there
    normed_ptr,  # [T, width]
    experts_ptr,  # [num_experts, 4] int64: addresses of gate-up, its scales, down, its scales
    x_ptr,  # [T * CHOICES, width]
    rows_ptr,  # [T, CHOICES] int32
    gate_up_tiles_ptr,  # [num_tiles, 4] int64
    down_tiles_ptr,  # [num_tiles, 4] int64
    num_tiles,
    width,
    num_experts,
    CHOICES: tl.constexpr,
    TILE: tl.constexpr,
    TOKENS: tl.constexpr,
    EXPERTS: tl.constexpr,
    TILES: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Choose for one token, and write its rows and tiles."""
    token = tl.program_id(0)
    count = tl.load(count_ptr)
    tokens, experts = tl.arange(0, TOKENS), tl.arange(0, EXPERTS)
    is_answer = (tokens < count)[:, None] & (experts < num_experts)[None, :]
    left = tl.load(logits_ptr + tokens[:, None] * num_experts + experts[None, :], mask=is_answer, other=float("-inf"))
    left = _ranked(left, (experts < num_experts)[None, :])
    goes = tl.zeros((TOKENS, EXPERTS), dtype=tl.int32)
    for _ in tl.static_range(CHOICES):
        is_best = experts[None, :] == tl.argmax(left, axis=1)[:, None]
        goes += tl.where(is_best & is_answer, 1, 0)
        left = tl.where(is_best, float("-inf"), left)
    counts = tl.sum(goes, axis=0)
    before = tl.sum(tl.where(tokens[:, None] < token, goes, 0), axis=0)
    tiles = (counts + TILE - 1) // TILE
    first_rows, first_tiles = tl.cumsum(counts, axis=0) - counts, tl.cumsum(tiles, axis=0) - tiles
    if token == 0:
        lines = tl.arange(0, TILES)
        is_free = (lines >= tl.sum(tiles)) & (lines < num_tiles)
        tl.store(gate_up_tiles_ptr + lines * _FIELDS + 3, tl.zeros((TILES,), dtype=tl.int64), mask=is_free)
        tl.store(down_tiles_ptr + lines * _FIELDS + 3, tl.zeros((TILES,), dtype=tl.int64), mask=is_free)
    own = tl.load(logits_ptr + token * num_experts + experts, mask=experts < num_experts, other=float("-inf"))
    own = _ranked(own, experts < num_experts)
    columns = tl.arange(0, WIDTH)
    for choice in tl.static_range(CHOICES):
        rows_at = rows_ptr + token * CHOICES + choice
        if token < count:
            expert = tl.argmax(own, axis=0)
            is_expert = experts == expert
            rank = tl.sum(tl.where(is_expert, before, 0))
            row = tl.sum(tl.where(is_expert, first_rows, 0)) + rank
            tl.store(rows_at, row)
            score = tl.sigmoid(tl.maximum(tl.max(own, axis=0), _ZERO)).to(x_ptr.dtype.element_ty).to(tl.float32)
            normed = tl.load(normed_ptr + token.to(tl.int64) * width + columns, mask=columns < width, other=0.0)
            scaled = (normed.to(tl.float32) * score).to(x_ptr.dtype.element_ty)
            tl.store(x_ptr + row.to(tl.int64) * width + columns, scaled, mask=columns < width)
            if rank % TILE == 0:
                tile = tl.sum(tl.where(is_expert, first_tiles, 0)) + rank // TILE
                num_rows = tl.minimum(tl.sum(tl.where(is_expert, counts, 0)) - rank, TILE)
                address_ptr = experts_ptr + expert.to(tl.int64) * 4
                _write_tile(gate_up_tiles_ptr + tile * _FIELDS, address_ptr, row, num_rows)
                _write_tile(down_tiles_ptr + tile * _FIELDS, address_ptr + 2, row, num_rows)
            own = tl.where(is_expert, float("-inf"), own)
        else:
            tl.store(rows_at, -1)


@triton.jit
def _ranked(logits, is_expert):
    """Return logits of which every expert's is above what marks those that are chosen or do not exist.

    Of a row of no numbers experts are chosen, too, each once: a place that nobody fills would hold an earlier step's,
    and an address beyond the experts would end the card's work for all.
    """
    return tl.where(is_expert, tl.where(logits > _LOWEST, logits, _LOWEST), float("-inf"))


@triton.jit
def _write_tile(line_ptr, address_ptr, first, count):
    tl.store(line_ptr, tl.load(address_ptr))
    tl.store(line_ptr + 1, tl.load(address_ptr + 1))
    tl.store(line_ptr + 2, first.to(tl.int64))
    tl.store(line_ptr + 3, count.to(tl.int64))


def route(
    logits_TE: Tensor,
    num_there: Tensor,
    normed_TD: Tensor,
    experts: Tensor,
    x_ND: Tensor,
    gate_up_tiles: Tensor,
    down_tiles: Tensor,
    *,
    num_choices: int,
    tile: int,
) -> Tensor:
    """Choose experts, write each token's scaled row where its experts read it, and list the tiles.

    Args:
        logits_TE: [T, E] float32.
        num_there: [1] int32: tokens that are there, the first ones; the others go nowhere.
        normed_TD: [T, D], contiguous; only read.
        experts: [E, 4] int64, addresses, see `route_kernel`.
        x_ND: [T · K, D], contiguous: gets the rows, sorted by expert.
        gate_up_tiles: [tiles, 4] int64, as in `tiles`; at least `most_tiles` lines, those are written.
        down_tiles: likewise.
        num_choices: experts per token [K].
        tile: tokens of a tile at most.

    Returns:
        [T, K] int32: the row of each choice among those sorted by expert; below 0 for tokens that are not there.
    """
    (num_tokens, num_experts), width = logits_TE.shape, normed_TD.shape[1]
    num_tiles = most_tiles(num_tokens * num_choices, num_experts, tile)
    rows_TK = torch.empty(num_tokens, num_choices, dtype=torch.int32, device=logits_TE.device)
    with torch.cuda.device_of(logits_TE):
        route_kernel[(num_tokens,)](
            logits_TE,
            num_there,
            normed_TD,
            experts,
            x_ND,
            rows_TK,
            gate_up_tiles,
            down_tiles,
            num_tiles,
            width,
            num_experts,
            CHOICES=num_choices,
            TILE=tile,
            TOKENS=triton.next_power_of_2(num_tokens),
            EXPERTS=triton.next_power_of_2(num_experts),
            TILES=triton.next_power_of_2(num_tiles),
            WIDTH=triton.next_power_of_2(width),
            num_warps=8,
        )
    return rows_TK
