"""A decoder's weights: what they count as, and how rounding them changes its outputs."""

from __future__ import annotations

import torch

from models.llama4.decoder import load_decoder
from tests.tiny import TINY, TinyWeights, tiny_decoder


def num_router_weights(*, tied: bool) -> int:
    config, d = TINY, TINY.hidden_size
    qkv = (config.num_heads + 2 * config.num_kv_heads) * config.head_size
    layer = d * qkv + config.num_heads * config.head_size * d + 3 * d * config.expert_width
    layer += config.num_experts * d + 2 * d
    return (1 if tied else 2) * config.vocab_size * d + d + config.num_layers * layer


def test_weight_bytes_count_each_matrix_once():
    decoder, _ = tiny_decoder()
    assert decoder.weight_bytes() == 4 * num_router_weights(tied=False)


def test_tied_embeddings_count_once():
    decoder, _ = tiny_decoder(tie_embeddings=True)
    assert decoder.weight_bytes() == 4 * num_router_weights(tied=True)


def test_tied_embeddings_serve_as_lm_head():
    decoder, _ = tiny_decoder(tie_embeddings=True)
    hidden_TD = torch.randn(3, TINY.hidden_size, generator=torch.Generator().manual_seed(1))
    normed_TD = decoder.normed(hidden_TD, TinyWeights().read("norm"))
    torch.testing.assert_close(decoder.logits(hidden_TD), normed_TD @ TinyWeights().read("embed").t())


def test_rounded_weights_keep_embeddings_and_stay_close():
    exact, weights = tiny_decoder()
    hidden_TD = torch.randn(8, TINY.hidden_size, generator=torch.Generator().manual_seed(1))
    ids_T = torch.arange(8)
    # The LM head has 8 bits in both.
    for quantize, limit in (("int8", 0.02), ("int4", 0.02)):
        rounded = load_decoder(weights, dtype=torch.float32, quantize=quantize)
        assert torch.equal(rounded.embed(ids_T), exact.embed(ids_T))
        expected_TV = exact.logits(hidden_TD)
        assert 0 < (rounded.logits(hidden_TD) - expected_TV).norm() < limit * expected_TV.norm()
        assert rounded.weight_bytes() < exact.weight_bytes()
