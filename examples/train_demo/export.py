"""Writes the trained weights as a Hugging Face folder that transformers and Herd open alike."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from examples.train_demo.model import DemoModel, DemoShape
from examples.train_demo.vocabulary import special_id

STOPS = ("eot", "end_of_text", "eom")


def export(model: DemoModel, folder: Path) -> None:
    """Write config.json, generation_config.json and model.safetensors; tokenizer.model is there already.

    Args:
        model: the trained network; its weights are rounded to bfloat16.
        folder: the checkpoint's folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: weight.detach().to(torch.bfloat16).contiguous() for name, weight in model.state_dict().items()}
    draft = folder / "model.safetensors.part"
    save_file(tensors, draft, metadata={"format": "pt"})
    draft.chmod(0o644)
    draft.replace(folder / "model.safetensors")  # whoever has the old one mapped keeps it
    _write(folder / "config.json", config(model.shape))
    _write(folder / "generation_config.json", generation_config())


def config(shape: DemoShape) -> dict[str, object]:
    """Give the model's config.json."""
    is_global = [shape.is_global(i) for i in range(shape.num_layers)]
    return {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "dtype": "bfloat16",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_size,
        "hidden_act": "silu",
        "intermediate_size": shape.expert_width,
        "intermediate_size_mlp": shape.expert_width,
        "num_local_experts": shape.num_experts,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "moe_layers": list(range(shape.num_layers)),
        "use_qk_norm": True,
        "attention_bias": False,
        "attention_chunk_size": shape.chunk,
        "layer_types": ["full_attention" if g else "chunked_attention" for g in is_global],
        "no_rope_layer_interval": shape.nope_interval,
        "no_rope_layers": [int(not g) for g in is_global],
        "attn_temperature_tuning": True,
        "floor_scale": shape.floor_scale,
        "attn_scale": shape.attn_scale,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "rms_norm_eps": shape.norm_eps,
        "max_position_embeddings": shape.max_positions,
        "tie_word_embeddings": False,
        "bos_token_id": special_id("begin_of_text"),
        "eos_token_id": [special_id(name) for name in STOPS],
        "pad_token_id": special_id("finetune_right_pad"),
    }


def generation_config() -> dict[str, object]:
    """Give the sampling defaults: cool, so that a small model stays on its text."""
    return {
        "bos_token_id": special_id("begin_of_text"),
        "eos_token_id": [special_id(name) for name in STOPS],
        "pad_token_id": special_id("finetune_right_pad"),
        "do_sample": True,
        "temperature": 0.4,
        "top_p": 0.9,
    }


def _write(file: Path, content: dict[str, object]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
