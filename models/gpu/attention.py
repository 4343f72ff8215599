"""Attention over the paged cache on a GPU: one launch puts keys and values where they belong, one or two attend.

    place     rotation, norm and temperature of queries and keys; keys and values go into their slots of the cache
    attend    a program holds the queries of some tokens and of the heads that share keys, and goes along its part of
              the keys they see; its softmax is kept as output and log-sum-exp
    merge     joins the parts, where there are several: few tokens over many keys would else leave most of a card idle

Nobody reads what nobody sees: which slots those are comes as a list of pages (`attention_pages`), so that local layers
read their chunk and global layers all, in pages of any size.

Source: Dao 2023 (FlashAttention-2); Dao et al. 2023 (Flash-Decoding).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.gpu.attention_pages import KEYS, AttentionPages
from models.gpu.dot import dot

_LEAST_ROWS = 16
"""Of a tile of queries: tensor cores want so many."""
_LOG2_E = math.log2(math.e)


@triton.jit
def place_kernel(
    qkv_ptr,  # [T, H + 2G, HEAD]
    turns_ptr,  # [T, HEAD / 2, 2] float32: cosine and sine
    temperature_ptr,  # [T] float32
    slots_ptr,  # [T] integers; below 0: the cache takes nothing of this token
    q_ptr,  # [T, H, HEAD]
    keys_ptr,  # [slots, G, HEAD]
    values_ptr,  # [slots, G, HEAD]
    eps,
    num_heads,
    num_groups,
    HEAD: tl.constexpr,
    ROTATES: tl.constexpr,
    IS_INTERLEAVED: tl.constexpr,
    NORMS: tl.constexpr,
    HAS_TEMPERATURE: tl.constexpr,
):
    """Make one head of one token ready; see `models.llama4.attention.Attention.project` for the order."""
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    half: tl.constexpr = HEAD // 2
    pairs = tl.arange(0, half)
    if IS_INTERLEAVED:
        first, second = 2 * pairs, 2 * pairs + 1
    else:
        first, second = pairs, pairs + half
    dtype = q_ptr.dtype.element_ty
    qkv_ptr += (token * (num_heads + 2 * num_groups) + head) * HEAD
    a, b = tl.load(qkv_ptr + first), tl.load(qkv_ptr + second)
    if head < num_heads + num_groups:
        if ROTATES:
            turn_ptrs = turns_ptr + token * HEAD + 2 * pairs
            cos, sin = tl.load(turn_ptrs), tl.load(turn_ptrs + 1)
            a32, b32 = a.to(tl.float32), b.to(tl.float32)
            a, b = (a32 * cos - b32 * sin).to(dtype), (a32 * sin + b32 * cos).to(dtype)
            if NORMS:
                a32, b32 = a.to(tl.float32), b.to(tl.float32)
                scale = tl.rsqrt((tl.sum(a32 * a32) + tl.sum(b32 * b32)) / HEAD + eps)
                a, b = (a32 * scale).to(dtype), (b32 * scale).to(dtype)
    if head < num_heads:
        if HAS_TEMPERATURE:
            temperature = tl.load(temperature_ptr + token)
            a, b = (a.to(tl.float32) * temperature).to(dtype), (b.to(tl.float32) * temperature).to(dtype)
        out_ptr = q_ptr + (token * num_heads + head) * HEAD
        tl.store(out_ptr + first, a)
        tl.store(out_ptr + second, b)
    else:
        slot = tl.load(slots_ptr + token).to(tl.int64)
        if head < num_heads + num_groups:
            out_ptr = keys_ptr + (slot * num_groups + head - num_heads) * HEAD
        else:
            out_ptr = values_ptr + (slot * num_groups + head - num_heads - num_groups) * HEAD
        if slot >= 0:
            tl.store(out_ptr + first, a)
            tl.store(out_ptr + second, b)


@triton.jit
def attend_kernel(
    q_ptr,  # [T, H, HEAD]
    keys_ptr,  # [slots, G, HEAD]
    values_ptr,  # [slots, G, HEAD]
    queries_ptr,  # [Q, 4] int32: see `AttentionPages`
    pages_ptr,  # [P] int32
    out_ptr,  # [T, H, HEAD]; of several splits [splits, T, H, HEAD] float32
    lse_ptr,  # [splits, T, H] float32, to the base 2
    scale,  # of scores, times log2(e)
    num_rows,  # T
    num_groups,
    HEAD: tl.constexpr,
    PER_GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    PAGE: tl.constexpr,
    SPLITS: tl.constexpr,
    IS_NATIVE: tl.constexpr,
):
    """Attend with some tokens' queries of one group of heads over one part of the keys they see."""
    query_ptr = queries_ptr + tl.program_id(0) * 4
    group, split = tl.program_id(1), tl.program_id(2)
    first_row, num_tokens = tl.load(query_ptr), tl.load(query_ptr + 1)
    first_sees, first_page = tl.load(query_ptr + 2), tl.load(query_ptr + 3)
    if num_tokens == 0:
        return
    num_keys = first_sees + num_tokens - 1
    num_tiles = tl.cdiv(num_keys, KEYS)
    rows, sizes, keys = tl.arange(0, ROWS), tl.arange(0, HEAD), tl.arange(0, KEYS)
    tokens, heads = rows // PER_GROUP, group * PER_GROUP + rows % PER_GROUP
    is_row, sees = tokens < num_tokens, first_sees + tokens
    num_heads = num_groups * PER_GROUP
    lines = (first_row + tokens).to(tl.int64) * num_heads + heads
    q = tl.load(q_ptr + lines[:, None] * HEAD + sizes[None, :], mask=is_row[:, None], other=0.0)
    largest = tl.full((ROWS,), float("-inf"), dtype=tl.float32)
    total = tl.zeros((ROWS,), dtype=tl.float32)
    mixed = tl.zeros((ROWS, HEAD), dtype=tl.float32)
    for tile in range(num_tiles * split // SPLITS, num_tiles * (split + 1) // SPLITS):
        positions = tile * KEYS + keys
        is_key = positions < num_keys
        page = tl.load(pages_ptr + first_page + positions // PAGE, mask=is_key, other=0).to(tl.int64)
        starts = ((page * PAGE + positions % PAGE) * num_groups + group) * HEAD
        key = tl.load(keys_ptr + starts[None, :] + sizes[:, None], mask=is_key[None, :], other=0.0)
        scores = dot(q, key, tl.zeros((ROWS, KEYS), dtype=tl.float32), IS_NATIVE) * scale
        is_seen = is_key[None, :] & (positions[None, :] < sees[:, None])
        scores = tl.where(is_seen, scores, float("-inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        # A row that has seen nothing yet: -inf less -inf would be no number.
        base = tl.where(new_largest == float("-inf"), 0.0, new_largest)
        weights = tl.exp2(scores - base[:, None])
        keep = tl.exp2(largest - base)
        value = tl.load(values_ptr + starts[:, None] + sizes[None, :], mask=is_key[:, None], other=0.0)
        total = total * keep + tl.sum(weights, 1)
        mixed = dot(weights.to(value.dtype), value, mixed * keep[:, None], IS_NATIVE)
        largest = new_largest
    if SPLITS == 1:
        out = mixed / total[:, None]
    else:
        lines += split.to(tl.int64) * num_rows * num_heads
        out = mixed / tl.where(total > 0, total, 1.0)[:, None]
        tl.store(lse_ptr + lines, largest + tl.log2(tl.where(total > 0, total, 1.0)), mask=is_row)
    out_ptrs = out_ptr + lines[:, None] * HEAD + sizes[None, :]
    tl.store(out_ptrs, out.to(out_ptr.dtype.element_ty), mask=is_row[:, None])


@triton.jit
def merge_kernel(
    parts_ptr,  # [splits, lines, HEAD] float32
    lse_ptr,  # [splits, lines] float32, to the base 2
    out_ptr,  # [lines, HEAD]
    num_lines,
    num_splits,
    HEAD: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Join the parts of one token's head: outputs add up weighted by 2 ** lse."""
    line, sizes, splits = tl.program_id(0).to(tl.int64), tl.arange(0, HEAD), tl.arange(0, SPLITS)
    is_part = splits < num_splits
    lse = tl.load(lse_ptr + splits * num_lines + line, mask=is_part, other=float("-inf"))
    weights = tl.exp2(lse - tl.max(lse))
    lines = (splits * num_lines).to(tl.int64) + line
    parts = tl.load(parts_ptr + lines[:, None] * HEAD + sizes[None, :], mask=is_part[:, None], other=0.0)
    mixed = tl.sum(parts * weights[:, None], axis=0) / tl.sum(weights)
    tl.store(out_ptr + line * HEAD + sizes, mixed.to(out_ptr.dtype.element_ty))


def place(
    qkv_TC: Tensor,
    turns: Tensor | None,
    temperature_T: Tensor | None,
    slots_T: Tensor,
    keys: Tensor,
    values: Tensor,
    *,
    interleaved: bool,
    norm_eps: float | None,
) -> Tensor:
    """Write keys and values into the cache; return the queries [T, H, C], ready for `attend`.

    Args:
        qkv_TC: [T, (H + 2G) · C], queries, keys and values of every token.
        turns: [T, 1, C/2] complex64, `RotaryEmbedding.turns`; None in layers that do not rotate.
        temperature_T: [T, 1, 1] float32 for queries of layers that do not rotate; None: none.
        slots_T: [T] int32 or int64, where each token's own go; below 0: nowhere.
        keys: [slots, G, C], contiguous.
        values: [slots, G, C], contiguous.
        interleaved: how pairs lie that are rotated.
        norm_eps: of the norm after the rotation; None: there is none.
    """
    assert all(each.is_contiguous() for each in (qkv_TC, keys, values))
    num_tokens, (_, num_groups, size) = qkv_TC.shape[0], keys.shape
    num_heads = qkv_TC.shape[1] // size - 2 * num_groups
    q_THC = torch.empty(num_tokens, num_heads, size, dtype=qkv_TC.dtype, device=qkv_TC.device)
    none = slots_T  # never read
    with torch.cuda.device_of(qkv_TC):
        place_kernel[(num_tokens, num_heads + 2 * num_groups)](
            qkv_TC,
            none if turns is None else torch.view_as_real(turns),
            none if temperature_T is None else temperature_T,
            slots_T,
            q_THC,
            keys,
            values,
            0.0 if norm_eps is None else norm_eps,
            num_heads,
            num_groups,
            HEAD=size,
            ROTATES=turns is not None,
            IS_INTERLEAVED=interleaved,
            NORMS=norm_eps is not None,
            HAS_TEMPERATURE=temperature_T is not None,
            num_warps=1,
        )
    return q_THC


def attend(q_THC: Tensor, keys: Tensor, values: Tensor, reading: AttentionPages) -> Tensor:
    """Return the attention [T, H, C] of every token over what it sees.

    Args:
        q_THC: [T, H, C], contiguous, as `place` returns it.
        keys: [slots, G, C], contiguous.
        values: [slots, G, C], contiguous.
        reading: of the step, in layers of this kind. Rows that no tile has are left as they come.
    """
    assert all(each.is_contiguous() for each in (q_THC, keys, values))
    num_tokens, num_heads, size = q_THC.shape
    num_groups = keys.shape[1]
    per_group = num_heads // num_groups
    out_THC = torch.empty_like(q_THC)
    parts, lse = out_THC, out_THC
    if reading.splits > 1:
        parts = torch.empty(reading.splits, *q_THC.shape, dtype=torch.float32, device=q_THC.device)
        lse = torch.empty(reading.splits, num_tokens, num_heads, dtype=torch.float32, device=q_THC.device)
    rows = max(_LEAST_ROWS, triton.next_power_of_2(reading.tokens * per_group))
    with torch.cuda.device_of(q_THC):
        attend_kernel[(reading.queries.shape[0], num_groups, reading.splits)](
            q_THC,
            keys,
            values,
            reading.queries,
            reading.pages,
            parts,
            lse,
            size**-0.5 * _LOG2_E,
            num_tokens,
            num_groups,
            HEAD=size,
            PER_GROUP=per_group,
            ROWS=rows,
            KEYS=KEYS,
            PAGE=reading.page_tokens,
            SPLITS=reading.splits,
            IS_NATIVE=q_THC.is_cuda,
            num_warps=4,
            num_stages=2,
        )
        if reading.splits > 1:
            lines = num_tokens * num_heads
            splits = triton.next_power_of_2(reading.splits)
            merge_kernel[(lines,)](parts, lse, out_THC, lines, reading.splits, HEAD=size, SPLITS=splits, num_warps=4)
    return out_THC
