"""Logits against transformers, on random models made at test time: no reference files needed.

The variations cover what the goldens cover: every kind of layer, one and several experts per token, chunks that do
not divide the sequence, frequency scaling, and the pairing of Hugging Face's dense Llamas.
"""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama4 import Llama4ForCausalLM, Llama4TextConfig

from models.checkpoint import open_checkpoint
from models.llama4.decoder import load_decoder
from router.forward import Forward
from tests.parity.splits import run_in_splits
from tests.parity.transports import open_transport

SMALL = {
    "vocab_size": 160,
    "hidden_size": 48,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 12,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
}
LLAMA4 = SMALL | {
    "intermediate_size": 40,
    "intermediate_size_mlp": 56,
    "num_local_experts": 6,
    "attention_chunk_size": 7,
    "floor_scale": 3,
    "attn_temperature_tuning": True,
    "initializer_range": 0.2,
}
SCALED_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIATIONS = {
    "every layer routed": {"interleave_moe_layer_step": 1},
    "every second layer routed": {"interleave_moe_layer_step": 2, "use_qk_norm": False},
    "three experts per token": {"interleave_moe_layer_step": 1, "num_experts_per_tok": 3},
    "scaled frequencies": {"interleave_moe_layer_step": 2, "rope_parameters": SCALED_ROPE},
    "no position temperature": {"interleave_moe_layer_step": 4, "attn_temperature_tuning": False},
}


def save_random(model, folder):
    """Give a model weights that make its logits spread, save it, and return its logits for random ids."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for weight in model.parameters():
            spread = 0.1 if weight.dim() == 1 else 1.2 / weight.shape[-1] ** 0.5
            weight.copy_(torch.randn(weight.shape, generator=generator) * spread + (weight.dim() == 1))
        model.save_pretrained(folder)
        ids_BS = torch.randint(3, 160, (2, 30), generator=generator)
        return ids_BS, model.eval()(ids_BS).logits


def check(folder, ids_BS, expected, steps):
    checkpoint = open_checkpoint(folder)
    with open_transport(checkpoint, "local") as transport:
        logits = run_in_splits(Forward(load_decoder(checkpoint, dtype=torch.float32), transport), ids_BS, steps)
    assert expected.std() > 0.3, "the reference is too flat to tell right from wrong"
    assert (logits - expected).abs().max() < 1e-3


@pytest.mark.parametrize("steps", [[30], [1] * 30, [8, 1, 21]], ids=["whole", "1x30", "8+1+21"])
@pytest.mark.parametrize("variation", VARIATIONS.values(), ids=VARIATIONS)
def test_llama_4_logits_equal_transformers(tmp_path, variation, steps):
    ids_BS, expected = save_random(Llama4ForCausalLM(Llama4TextConfig(**(LLAMA4 | variation))), tmp_path)
    check(tmp_path, ids_BS, expected, steps)


@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
def test_dense_llama_logits_equal_transformers(tmp_path, tied):
    config = LlamaConfig(**SMALL, intermediate_size=64, tie_word_embeddings=tied, rope_parameters=SCALED_ROPE)
    ids_BS, expected = save_random(LlamaForCausalLM(config), tmp_path)
    check(tmp_path, ids_BS, expected, [8, 1, 21])
