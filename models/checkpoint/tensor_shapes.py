"""Herd's names of a model's tensors and the shape of each: what a checkpoint has to provide."""

from __future__ import annotations

from models.config import ModelConfig

Shapes = dict[str, tuple[int, ...]]


def tensor_shapes(config: ModelConfig) -> Shapes:
    """Return every tensor's shape by name, in the order of the forward pass.

    Projections are [out, in]; a routed expert's two matrices are [in, out], `gate_up` with the gate's F columns first.
    A model with tied embeddings has no `lm_head`.
    """
    shapes: Shapes = {"embed": (config.vocab_size, config.hidden_size)}
    for layer in range(config.num_layers):
        shapes |= _attention_shapes(config, f"layers.{layer}")
        if layer in config.moe_layers:
            shapes |= _moe_shapes(config, f"layers.{layer}")
        else:
            shapes |= _mlp_shapes(f"layers.{layer}.dense", config.dense_width, config.hidden_size)
    shapes["norm"] = (config.hidden_size,)
    if not config.tie_embeddings:
        shapes["lm_head"] = (config.vocab_size, config.hidden_size)
    return shapes


def expert_names(layer: int, expert: int) -> tuple[str, str]:
    """Return the names of a routed expert's two matrices."""
    return f"layers.{layer}.experts.{expert}.gate_up", f"layers.{layer}.experts.{expert}.down"


def is_expert(name: str) -> bool:
    """Tell whether a name is that of a routed expert's matrix, which is [in, out]."""
    return ".experts." in name


def _attention_shapes(config: ModelConfig, prefix: str) -> Shapes:
    q_width, kv_width = config.num_heads * config.head_size, config.num_kv_heads * config.head_size
    return {
        f"{prefix}.attn_norm": (config.hidden_size,),
        f"{prefix}.attn.q": (q_width, config.hidden_size),
        f"{prefix}.attn.k": (kv_width, config.hidden_size),
        f"{prefix}.attn.v": (kv_width, config.hidden_size),
        f"{prefix}.attn.o": (config.hidden_size, q_width),
        f"{prefix}.ffn_norm": (config.hidden_size,),
    }


def _moe_shapes(config: ModelConfig, prefix: str) -> Shapes:
    width, hidden = config.expert_width, config.hidden_size
    experts = {
        name: shape
        for expert in range(config.num_experts)
        for name, shape in zip(
            (f"{prefix}.experts.{expert}.gate_up", f"{prefix}.experts.{expert}.down"),
            ((hidden, 2 * width), (width, hidden)),
            strict=True,
        )
    }
    return {f"{prefix}.gate": (config.num_experts, hidden)} | _mlp_shapes(f"{prefix}.shared", width, hidden) | experts


def _mlp_shapes(prefix: str, width: int, hidden: int) -> Shapes:
    return {
        f"{prefix}.gate": (width, hidden),
        f"{prefix}.up": (width, hidden),
        f"{prefix}.down": (hidden, width),
    }
