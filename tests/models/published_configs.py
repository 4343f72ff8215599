"""Configurations in the spelling of the published files."""

from __future__ import annotations

from typing import Any

# config.json of Llama-4-Scout-17B-16E-Instruct, language part: note the 4, the [] and the old rope spelling.
SCOUT_TEXT: dict[str, Any] = {
    "attention_bias": False,
    "attention_chunk_size": 8192,
    "attention_dropout": 0.0,
    "attn_scale": 0.1,
    "attn_temperature_tuning": 4,
    "bos_token_id": 200000,
    "eos_token_id": [200001, 200007, 200008],
    "floor_scale": 8192,
    "for_llm_compressor": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "interleave_moe_layer_step": 1,
    "intermediate_size": 8192,
    "intermediate_size_mlp": 16384,
    "max_position_embeddings": 10485760,
    "model_type": "llama4_text",
    "no_rope_layers": [],
    "num_attention_heads": 40,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 48,
    "num_key_value_heads": 8,
    "num_local_experts": 16,
    "output_router_logits": False,
    "pad_token_id": 200018,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 16.0,
        "high_freq_factor": 1.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "router_aux_loss_coef": 0.001,
    "router_jitter_noise": 0.0,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_qk_norm": True,
    "vocab_size": 202048,
}
MAVERICK_TEXT = SCOUT_TEXT | {
    "interleave_moe_layer_step": 2,
    "max_position_embeddings": 1048576,
    "num_local_experts": 128,
    "rope_scaling": None,
    "use_qk_norm": False,
}
# Llama Guard 4: Scout without its routed experts; every layer rotary and global.
GUARD_TEXT = SCOUT_TEXT | {
    "attention_chunk_size": None,
    "interleave_moe_layer_step": 0,
    "intermediate_size_mlp": 8192,
    "moe_layers": [],
    "no_rope_layer_interval": 80,
    "num_local_experts": 0,
}


def multimodal(text: dict[str, Any]) -> dict[str, Any]:
    """Return the file around a language part."""
    return {
        "architectures": ["Llama4ForConditionalGeneration"],
        "boi_token_index": 200080,
        "eoi_token_index": 200081,
        "image_token_index": 200092,
        "model_type": "llama4",
        "text_config": text,
        "torch_dtype": "bfloat16",
        "vision_config": {"hidden_size": 1408, "model_type": "llama4_vision_model"},
    }


# params.json of Meta's own Scout release. It is silent on context, special tokens and the rope's two factors.
SCOUT_PARAMS: dict[str, Any] = {
    "dim": 5120,
    "n_layers": 48,
    "n_heads": 40,
    "n_kv_heads": 8,
    "head_dim": 128,
    "vocab_size": 202048,
    "multiple_of": 2048,
    "ffn_dim_multiplier": 1.2,
    "ffn_exp": 4.0,
    "norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "attention_chunk_size": 8192,
    "nope_layer_interval": 4,
    "use_scaled_rope": True,
    "use_qk_norm": True,
    "moe_args": {"num_experts": 16, "capacity_factor": 1.0, "auto_scale_F": True, "top_k": 1},
}
MAVERICK_PARAMS = SCOUT_PARAMS | {
    "use_scaled_rope": False,
    "use_qk_norm": False,
    "moe_args": {"num_experts": 128, "capacity_factor": 1.0, "top_k": 1, "interleave_moe_layer_step": 2},
}
