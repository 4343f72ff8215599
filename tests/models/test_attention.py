"""Attention: one token and several alike, in every dtype, against the definition."""

from __future__ import annotations

import math

import pytest
import torch

from models.llama4.attention import attend

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
NUM_HEADS, NUM_GROUPS, HEAD_SIZE = 6, 2, 16


def attend_slowly(q_THC, keys_GSC, values_GSC):
    """Attend query by query and head by head, in float64."""
    num_tokens, num_keys = q_THC.shape[0], keys_GSC.shape[1]
    mixed_THC = torch.empty(q_THC.shape, dtype=torch.float64)
    for token in range(num_tokens):
        seen = num_keys - num_tokens + token + 1
        for head in range(NUM_HEADS):
            keys_SC, values_SC = (
                x_GSC[head // (NUM_HEADS // NUM_GROUPS), :seen].double() for x_GSC in (keys_GSC, values_GSC)
            )
            weights_S = torch.softmax(keys_SC @ q_THC[token, head].double() / math.sqrt(HEAD_SIZE), dim=0)
            mixed_THC[token, head] = weights_S @ values_SC
    return mixed_THC


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize(("num_tokens", "num_keys"), [(1, 1), (1, 20), (2, 20), (19, 20), (20, 20)])
def test_attention_equals_its_definition(num_tokens, num_keys, dtype):
    generator = torch.Generator().manual_seed(3)
    q_THC = torch.randn(num_tokens, NUM_HEADS, HEAD_SIZE, generator=generator).to(dtype)
    keys_GSC = torch.randn(NUM_GROUPS, num_keys, HEAD_SIZE, generator=generator).to(dtype)
    values_GSC = torch.randn(NUM_GROUPS, num_keys, HEAD_SIZE, generator=generator).to(dtype)
    mixed_THC = attend(q_THC, keys_GSC, values_GSC)
    assert mixed_THC.dtype == dtype
    expected_THC = attend_slowly(q_THC, keys_GSC, values_GSC)
    torch.testing.assert_close(mixed_THC.double(), expected_THC, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("num_tokens", [1, 2])
def test_products_beyond_float16_do_not_overflow(num_tokens):
    q_THC = torch.full((num_tokens, NUM_HEADS, HEAD_SIZE), 80.0, dtype=torch.float16)
    keys_GSC = torch.full((NUM_GROUPS, 3, HEAD_SIZE), 80.0, dtype=torch.float16)
    values_GSC = torch.ones(NUM_GROUPS, 3, HEAD_SIZE, dtype=torch.float16)
    assert torch.equal(attend(q_THC, keys_GSC, values_GSC), torch.ones_like(q_THC))
