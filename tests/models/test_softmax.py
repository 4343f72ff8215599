"""Attention over pieces of a cache, against the definition in float64: however the pieces are cut."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.llama4.softmax import attend_causal, attend_padded, attend_past

HEAD_SIZE = 16
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def attend_slowly(q_THC, keys_GSC, values_GSC, seen_T):
    """Attend query by query over the first `seen` keys of each, in float64."""
    num_tokens, num_heads, head_size = q_THC.shape
    mixed_THC = torch.empty(q_THC.shape, dtype=torch.float64)
    for token, seen in zip(range(num_tokens), seen_T, strict=True):
        for head in range(num_heads):
            group = head // (num_heads // keys_GSC.shape[0])
            keys_SC, values_SC = keys_GSC[group, :seen].double(), values_GSC[group, :seen].double()
            weights_S = torch.softmax(keys_SC @ q_THC[token, head].double() / math.sqrt(head_size), dim=0)
            mixed_THC[token, head] = weights_S @ values_SC
    return mixed_THC


def random_inputs(num_tokens, num_keys, num_heads=6, num_groups=2, dtype=torch.float32, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    q_THC = scale * torch.randn(num_tokens, num_heads, HEAD_SIZE, generator=generator)
    keys_GSC, values_GSC = (torch.randn(num_groups, num_keys, HEAD_SIZE, generator=generator) for _ in range(2))
    return q_THC.to(dtype), keys_GSC.to(dtype), values_GSC.to(dtype)


def pieces(keys_GSC, values_GSC, sizes):
    return list(zip(keys_GSC.split(sizes, dim=1), values_GSC.split(sizes, dim=1), strict=True))


def assert_near(found_THC, expected_THC, dtype):
    assert found_THC.dtype == dtype
    torch.testing.assert_close(found_THC.double(), expected_THC, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_groups", [1, 2, 6])
@pytest.mark.parametrize("sizes", [[1], [7], [1, 1, 5], [40, 3, 64]])
@pytest.mark.parametrize("num_tokens", [1, 5])
def test_attention_over_past_pieces_equals_that_over_all_keys(sizes, num_tokens, num_groups, dtype):
    q_THC, keys_GSC, values_GSC = random_inputs(num_tokens, sum(sizes), num_groups=num_groups, dtype=dtype)
    mixed_THC = attend_past(q_THC, pieces(keys_GSC, values_GSC, sizes))
    assert_near(mixed_THC, attend_slowly(q_THC, keys_GSC, values_GSC, [sum(sizes)] * num_tokens), dtype)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("num_groups", [1, 2, 6])
@pytest.mark.parametrize("sizes", [[], [1], [40, 3, 64]])
@pytest.mark.parametrize("num_tokens", [1, 2, 33])
def test_causal_attention_sees_the_past_and_each_token_up_to_itself(sizes, num_tokens, num_groups, dtype):
    num_past = sum(sizes)
    q_THC, keys_GSC, values_GSC = random_inputs(num_tokens, num_past + num_tokens, num_groups=num_groups, dtype=dtype)
    *past, own = pieces(keys_GSC, values_GSC, [*sizes, num_tokens])
    mixed_THC = attend_causal(q_THC, past, own)
    seen_T = [num_past + token + 1 for token in range(num_tokens)]
    assert_near(mixed_THC, attend_slowly(q_THC, keys_GSC, values_GSC, seen_T), dtype)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 4), st.integers(0, 2**31))
def test_no_cut_of_the_past_changes_the_result(sizes, num_tokens, seed):
    q_THC, keys_GSC, values_GSC = random_inputs(num_tokens, sum(sizes), seed=seed)
    whole_THC = attend_past(q_THC, [(keys_GSC, values_GSC)])
    cut_THC = attend_past(q_THC, pieces(keys_GSC, values_GSC, sizes))
    torch.testing.assert_close(cut_THC, whole_THC, atol=2e-6, rtol=0)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", [[5], [1, 9, 4]])
def test_lone_tokens_attended_to_together_see_their_own_pasts_only(lengths, dtype):
    q_BHC, keys_GSC, values_GSC = random_inputs(len(lengths), len(lengths) * 9, dtype=dtype)
    keys_BGSC, values_BGSC = (torch.stack(part.split(9, dim=1)) for part in (keys_GSC, values_GSC))
    mask_BS = torch.zeros(len(lengths), 9)
    for row, length in enumerate(lengths):
        mask_BS[row, length:] = -torch.inf
    mixed_BHC = attend_padded(q_BHC, keys_BGSC, values_BGSC, mask_BS)
    for row, length in enumerate(lengths):
        expected_THC = attend_slowly(q_BHC[row : row + 1], keys_BGSC[row], values_BGSC[row], [length])
        assert_near(mixed_BHC[row : row + 1], expected_THC, dtype)


def test_scores_far_apart_between_pieces_do_not_overflow():
    """One piece holds nearly all the weight: exp of the scores themselves would be infinite."""
    q_THC, keys_GSC, values_GSC = random_inputs(3, 20, scale=300.0)
    mixed_THC = attend_past(q_THC, pieces(keys_GSC, values_GSC, [10, 10]))
    assert_near(mixed_THC, attend_slowly(q_THC, keys_GSC, values_GSC, [20] * 3), torch.float32)


@pytest.mark.parametrize("num_tokens", [1, 2])
def test_products_beyond_float16_do_not_overflow(num_tokens):
    q_THC = torch.full((num_tokens, 6, HEAD_SIZE), 80.0, dtype=torch.float16)
    keys_GSC = torch.full((2, 4, HEAD_SIZE), 80.0, dtype=torch.float16)
    values_GSC = torch.ones(2, 4, HEAD_SIZE, dtype=torch.float16)
    for sizes in ([4], [1, 3]):
        assert torch.equal(attend_past(q_THC, pieces(keys_GSC, values_GSC, sizes)), torch.ones_like(q_THC))


def test_views_of_a_cache_by_slot_are_read_as_they_lie():
    """A cache is [S, G, C]; what attention gets is its transposed view, a part of it."""
    q_THC, keys_GSC, values_GSC = random_inputs(2, 30)
    cache_SGC = [part.transpose(0, 1).contiguous() for part in (keys_GSC, values_GSC)]
    views = tuple(part.transpose(0, 1)[:, 4:17] for part in cache_SGC)
    assert not views[0].is_contiguous()
    expected_THC = attend_slowly(q_THC, keys_GSC[:, 4:17], values_GSC[:, 4:17], [13] * 2)
    assert_near(attend_past(q_THC, [views]), expected_THC, torch.float32)


def test_queries_that_are_a_part_of_a_wider_row_are_read_as_they_lie():
    q_THC, keys_GSC, values_GSC = random_inputs(4, 4)
    wide = torch.cat([q_THC, torch.full_like(q_THC, 7.0)], dim=1)
    part_THC = wide[:, : q_THC.shape[1]]
    expected_THC = attend_slowly(q_THC, keys_GSC, values_GSC, [1, 2, 3, 4])
    assert_near(attend_causal(part_THC, [], (keys_GSC, values_GSC)), expected_THC, torch.float32)
