"""What computing a step needs besides weights and cache: the tensors that are there at once at its widest place."""

from __future__ import annotations

from models.config import ModelConfig

_LOGIT_BYTES = 4
_DISPATCHES = 2
"""Dispatches an expert replica may merge into one, counted at full length; later ones wait."""


def router_workspace(config: ModelConfig, *, step_tokens: int, slots: int, item_bytes: int) -> int:
    """Return the bytes a router computes in.

    The residual stream, its norm and what a layer adds; queries, keys, values and their mix, or the two inner halves of
    an MLP and their product, whichever is more; what travels to experts and back; logits, and a copy to sample from.
    """
    hidden = 3 * config.hidden_size
    attention = (2 * config.num_heads + 2 * config.num_kv_heads) * config.head_size
    inner = 3 * max(config.expert_width, config.dense_width if len(config.moe_layers) < config.num_layers else 0)
    dispatch = 2 * config.experts_per_token * config.hidden_size
    per_token = hidden + max(attention, inner) + dispatch
    return step_tokens * per_token * item_bytes + 2 * slots * config.vocab_size * _LOGIT_BYTES


def expert_workspace(config: ModelConfig, *, step_tokens: int, item_bytes: int) -> int:
    """Return the bytes an expert replica computes in, all tokens of its dispatches being its own at worst."""
    per_token = 2 * config.hidden_size + 3 * config.expert_width
    return _DISPATCHES * step_tokens * config.experts_per_token * per_token * item_bytes


def shard_workspace(config: ModelConfig, *, step_tokens: int, item_bytes: int) -> int:
    """Return the bytes a context shard computes in: queries, keys, values and float32 outputs of a step."""
    widths = config.num_heads * (item_bytes + 2 * 4) + 2 * config.num_kv_heads * item_bytes
    return step_tokens * widths * config.head_size
