"""A model whose experts are large enough that their bytes show in a process's memory."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.models.checkpoint_files import HF_FIELDS, write_hf

EXPERT_BYTES = 3 * 1024 * 768 * 4
NUM_EXPERTS, NUM_LAYERS = 8, 2
WIDE = {
    "hidden_size": 1024,
    "intermediate_size": 768,
    "num_local_experts": NUM_EXPERTS,
    "num_hidden_layers": NUM_LAYERS,
    "interleave_moe_layer_step": 1,
    "head_dim": 32,
}


def write_wide(folder: Path) -> Path:
    """Write a model with 151 MB of routed experts, in 16 pairs of 9.4 MB."""
    fields, d, f = HF_FIELDS | WIDE, WIDE["hidden_size"], WIDE["intermediate_size"]
    generator = torch.Generator().manual_seed(5)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {
        "model.embed_tokens.weight": random(96, d),
        "model.norm.weight": random(d),
        "lm_head.weight": random(96, d),
    }
    for layer in range(NUM_LAYERS):
        name = f"model.layers.{layer}"
        tensors |= {
            f"{name}.input_layernorm.weight": random(d),
            f"{name}.post_attention_layernorm.weight": random(d),
            f"{name}.self_attn.q_proj.weight": random(128, d),
            f"{name}.self_attn.k_proj.weight": random(64, d),
            f"{name}.self_attn.v_proj.weight": random(64, d),
            f"{name}.self_attn.o_proj.weight": random(d, 128),
            f"{name}.feed_forward.router.weight": random(NUM_EXPERTS, d),
            f"{name}.feed_forward.shared_expert.gate_proj.weight": random(f, d),
            f"{name}.feed_forward.shared_expert.up_proj.weight": random(f, d),
            f"{name}.feed_forward.shared_expert.down_proj.weight": random(d, f),
            f"{name}.feed_forward.experts.gate_up_proj": random(NUM_EXPERTS, d, 2 * f),
            f"{name}.feed_forward.experts.down_proj": random(NUM_EXPERTS, f, d),
        }
    return write_hf(folder, tensors, **fields)
