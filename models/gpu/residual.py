"""The residual stream on a GPU, between two blocks: add what the last one gave, normalise, ask the gate; one launch.

Operator by operator this is five to eight launches, and a launch of a few microseconds costs a decode step more than
the bytes it moves.

A program holds one token's row. Where there is a gate, several programs share a token: each adds and normalises for
itself, which costs less than another launch, and asks the gate about some experts.

Source: as `models.llama4.norm.rms_norm` and `router.gate.route`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_EXPERTS = 4
"""That a program asks about."""


@dataclass(frozen=True, slots=True)
class Addend:
    """What is added to the residual stream of T tokens: a row each, and the rows of the experts they chose."""

    base_TD: Tensor
    """[T, D], contiguous rows."""
    outputs_ND: Tensor | None = None
    """[N, D], rows of experts; None: there are none."""
    rows_TK: Tensor | None = None
    """[T, K] int32: the rows that are added for each token, in this order; below 0: none."""


@dataclass(frozen=True, slots=True)
class Normed:
    """The residual stream after an addition."""

    hidden_TD: Tensor
    normed_TD: Tensor
    """RMS-normalised and multiplied by the norm's weight."""
    logits_TE: Tensor | None
    """[T, E] float32, what the gate says; None where there is none."""


@triton.jit
def add_norm_kernel(
    hidden_ptr,  # [T, width]
    base_ptr,  # [T, width]
    outputs_ptr,  # [N, width]
    rows_ptr,  # [T, CHOICES] int32
    weight_ptr,  # [width]
    gate_ptr,  # [num_experts, width]
    new_hidden_ptr,  # [T, width]
    normed_ptr,  # [T, width]
    logits_ptr,  # [T, num_experts] float32
    width,
    eps,
    num_experts,
    HAS_BASE: tl.constexpr,
    CHOICES: tl.constexpr,
    EXPERTS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Add, normalise and ask about EXPERTS experts, for one token."""
    token, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dtype = new_hidden_ptr.dtype.element_ty
    columns = tl.arange(0, WIDTH)
    is_column = columns < width
    hidden = tl.load(hidden_ptr + token * width + columns, mask=is_column, other=0.0)
    if HAS_BASE:
        added = tl.load(base_ptr + token * width + columns, mask=is_column, other=0.0).to(tl.float32)
        for choice in tl.static_range(CHOICES):
            row = tl.load(rows_ptr + token * CHOICES + choice).to(tl.int64)
            is_added = columns < tl.where(row >= 0, width, 0)
            added += tl.load(outputs_ptr + row * width + columns, mask=is_added, other=0.0).to(tl.float32)
        hidden = (hidden.to(tl.float32) + added).to(dtype)
    hidden32 = hidden.to(tl.float32)
    scale = tl.rsqrt(tl.sum(hidden32 * hidden32) / width + eps)
    weight = tl.load(weight_ptr + columns, mask=is_column, other=0.0)
    normed = ((hidden32 * scale).to(dtype).to(tl.float32) * weight.to(tl.float32)).to(dtype)
    if part == 0:
        tl.store(new_hidden_ptr + token * width + columns, hidden, mask=is_column)
        tl.store(normed_ptr + token * width + columns, normed, mask=is_column)
    for index in tl.static_range(EXPERTS):
        expert = part * EXPERTS + index
        is_wanted = columns < tl.where(expert < num_experts, width, 0)
        gate = tl.load(gate_ptr + expert.to(tl.int64) * width + columns, mask=is_wanted, other=0.0)
        logit = tl.sum(gate.to(tl.float32) * normed.to(tl.float32))
        if expert < num_experts:
            # Rounded as a product in the tokens' dtype is: whoever computes a prompt with operators chooses alike.
            tl.store(logits_ptr + token * num_experts + expert, logit.to(dtype).to(tl.float32))


def add_norm(
    hidden_TD: Tensor,
    addend: Addend | None,
    weight_D: Tensor,
    eps: float,
    *,
    gate_ED: Tensor | None = None,
    normed_TD: Tensor | None = None,
    new_hidden_TD: Tensor | None = None,
) -> Normed:
    """Add to the residual stream, normalise it, and ask the gate.

    Args:
        hidden_TD: [T, D], contiguous; only read.
        addend: what to add; None: nothing.
        weight_D: [D], of the norm.
        eps: of the norm.
        gate_ED: [E, D], contiguous; None: nobody is asked.
        normed_TD: [T, D], contiguous, where to put what is normalised; None: in new memory.
        new_hidden_TD: the same for the sum; not where `hidden_TD` is.
    """
    num_tokens, width = hidden_TD.shape
    new_hidden_TD = torch.empty_like(hidden_TD) if new_hidden_TD is None else new_hidden_TD
    assert new_hidden_TD is not hidden_TD, "programs that share a token read what one of them would write"
    normed_TD = torch.empty_like(hidden_TD) if normed_TD is None else normed_TD
    num_experts = 0 if gate_ED is None else gate_ED.shape[0]
    logits_TE = torch.empty(num_tokens, num_experts, dtype=torch.float32, device=hidden_TD.device)
    none = hidden_TD  # never read
    outputs_ND, rows_TK = (None, None) if addend is None else (addend.outputs_ND, addend.rows_TK)
    with torch.cuda.device_of(hidden_TD):
        add_norm_kernel[(num_tokens, max(1, triton.cdiv(num_experts, _EXPERTS)))](
            hidden_TD,
            none if addend is None else addend.base_TD,
            none if outputs_ND is None else outputs_ND,
            none if rows_TK is None else rows_TK,
            weight_D,
            none if gate_ED is None else gate_ED,
            new_hidden_TD,
            normed_TD,
            logits_TE,
            width,
            eps,
            num_experts,
            HAS_BASE=addend is not None,
            CHOICES=0 if rows_TK is None else rows_TK.shape[1],
            EXPERTS=_EXPERTS if num_experts else 0,
            WIDTH=triton.next_power_of_2(width),
            num_warps=8,
        )
    return Normed(new_hidden_TD, normed_TD, None if gate_ED is None else logits_TE)
