"""Attention: one token and several alike, in every dtype, against the definition."""

from __future__ import annotations

import math

import pytest
import torch

from models.llama4.softmax import attend_causal, attend_padded, attend_past

TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 2e-3}
NUM_HEADS, NUM_GROUPS, HEAD_SIZE = 6, 2, 16


def attend(q_THC, keys_GSC, values_GSC):
    """Attend as a step does: the past, then the tokens themselves."""
    start = keys_GSC.shape[1] - q_THC.shape[0]
    if q_THC.shape[0] == 1:
        return attend_past(q_THC, [(keys_GSC, values_GSC)])
    past = [(keys_GSC[:, :start], values_GSC[:, :start])] if start else []
    return attend_causal(q_THC, past, (keys_GSC[:, start:], values_GSC[:, start:]))


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


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_lone_tokens_attended_to_together_see_their_own_past_only(dtype):
    generator = torch.Generator().manual_seed(3)
    lengths = [3, 7, 1]
    q_BHC = torch.randn(3, NUM_HEADS, HEAD_SIZE, generator=generator).to(dtype)
    keys_BGSC = torch.randn(3, NUM_GROUPS, 7, HEAD_SIZE, generator=generator).to(dtype)
    values_BGSC = torch.randn(3, NUM_GROUPS, 7, HEAD_SIZE, generator=generator).to(dtype)
    mask_BS = torch.zeros(3, 7)
    for row, length in enumerate(lengths):
        mask_BS[row, length:] = -torch.inf
    together_BHC = attend_padded(q_BHC, keys_BGSC, values_BGSC, mask_BS)
    for row, length in enumerate(lengths):
        alone_1HC = attend_slowly(q_BHC[row : row + 1], keys_BGSC[row, :, :length], values_BGSC[row, :, :length])
        torch.testing.assert_close(together_BHC[row : row + 1].double(), alone_1HC, atol=TOLERANCE[dtype], rtol=0)
