"""Softmax attention over keys that lie in pieces, each computed by itself and merged exactly.

A piece's result is a partial output and the logarithm of its softmax's denominator (log-sum-exp). Outputs of several
pieces add up weighted by exp(lse): so past tokens need no mask, however many there are, and no piece is copied.
Source: Dao et al. 2022; Milakov and Gimelshein 2018 (online softmax).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]
"""Keys and values, each [G, S, C]; query head h reads group h // (H / G)."""


def attend_past(q_THC: Tensor, past: Sequence[KeysValues]) -> Tensor:
    """Return attention [T, H, C] of every query over all keys of all pieces: for a token whose own key is among them.

    Args:
        q_THC: [T, H, C].
        past: at least one piece.
    """
    partials = [_over_past(q_THC, *piece) for piece in past]
    return _merge(partials)


def attend_causal(q_THC: Tensor, past: Sequence[KeysValues], own: KeysValues) -> Tensor:
    """Return attention [T, H, C] of T consecutive tokens over the past and over themselves.

    Args:
        q_THC: [T, H, C].
        past: pieces that every query sees whole; may be empty.
        own: the T tokens' keys and values: query t sees the first t + 1.
    """
    return _merge([*(_over_past(q_THC, *piece) for piece in past), _over_own(q_THC, *own)])


def attend_padded(q_BHC: Tensor, keys_BGSC: Tensor, values_BGSC: Tensor, mask_BS: Tensor) -> Tensor:
    """Return attention [B, H, C] of lone tokens, each over a past of its own.

    Args:
        q_BHC: [B, H, C].
        keys_BGSC: [B, G, S, C], padded to one length.
        values_BGSC: the same.
        mask_BS: [B, S] float32, added to the scores: 0, or -inf where it pads.
    """
    num_groups, num_keys = keys_BGSC.shape[1:3]
    q_BGhC = q_BHC.unflatten(1, (num_groups, -1))
    mask_B11S = mask_BS.to(q_BHC.dtype).view(-1, 1, 1, num_keys)
    return F.scaled_dot_product_attention(q_BGhC, keys_BGSC, values_BGSC, attn_mask=mask_B11S).flatten(1, 2)


_Partial = tuple[Tensor, Tensor]
"""Output [H, T, C] and log-sum-exp [H, T] float32."""


def _over_past(q_THC: Tensor, keys_GSC: Tensor, values_GSC: Tensor) -> _Partial:
    num_tokens, num_heads, head_size = q_THC.shape
    num_groups = keys_GSC.shape[0]
    # Without a mask, the queries of a group's heads are rows of one product: keys are not repeated for every head.
    if num_tokens == 1:
        q_1GnC = q_THC.reshape(1, num_groups, -1, head_size)
    else:
        q_1GnC = q_THC.transpose(0, 1).reshape(1, num_groups, -1, head_size)
    out_1GnC, lse_1Gn = _flash(q_1GnC, keys_GSC[None], values_GSC[None], is_causal=False)
    return out_1GnC.reshape(num_heads, num_tokens, head_size), lse_1Gn.reshape(num_heads, num_tokens)


def _over_own(q_THC: Tensor, keys_GTC: Tensor, values_GTC: Tensor) -> _Partial:
    num_repeats = q_THC.shape[1] // keys_GTC.shape[0]
    keys_1HTC, values_1HTC = (part.repeat_interleave(num_repeats, dim=0)[None] for part in (keys_GTC, values_GTC))
    out_1HTC, lse_1HT = _flash(q_THC.transpose(0, 1)[None], keys_1HTC, values_1HTC, is_causal=True)
    return out_1HTC[0], lse_1HT[0]


def _merge(partials: Sequence[_Partial]) -> Tensor:
    """Return [T, H, C]."""
    if len(partials) == 1:
        return partials[0][0].transpose(0, 1)
    outs_PHTC = torch.stack([out_HTC.float() for out_HTC, _ in partials])
    lses_PHT = torch.stack([lse_HT for _, lse_HT in partials])
    weights_PHT = torch.softmax(lses_PHT, dim=0)
    merged_HTC = (outs_PHTC * weights_PHT[..., None]).sum(dim=0)
    return merged_HTC.to(partials[0][0].dtype).transpose(0, 1)


def _flash(q_1HTC: Tensor, k_1HSC: Tensor, v_1HSC: Tensor, *, is_causal: bool) -> tuple[Tensor, Tensor]:
    """Return attention [1, H, T, C] and log-sum-exp [1, H, T] float32; causal only where T equals S."""
    if q_1HTC.device.type == "cpu":
        out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q_1HTC, k_1HSC, v_1HSC, 0.0, is_causal)
        return out, lse
    scores = (q_1HTC @ k_1HSC.transpose(-1, -2)).float() * q_1HTC.shape[-1] ** -0.5
    if is_causal:
        scores = scores.masked_fill(torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1), -torch.inf)
    lse = torch.logsumexp(scores, dim=-1)
    return torch.exp(scores - lse[..., None]).to(v_1HSC.dtype) @ v_1HSC, lse
