"""The cache: what each kind of layer keeps, and that it never outgrows what was reserved."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.presets import SCOUT
from router.kv_cache import CacheLayout, SequenceCache
from tests.tiny import TINY

CPU = torch.device("cpu")


def layout(**changes):
    return CacheLayout(replace(TINY, **changes), torch.float32)


def token_kv(position: int, num_tokens: int) -> torch.Tensor:
    """Return keys [T, G, C] whose every number is the token's position."""
    positions = torch.arange(position, position + num_tokens, dtype=torch.float32)
    return positions[:, None, None].expand(-1, TINY.num_kv_heads, TINY.head_size)


def test_scout_keeps_48_kib_per_token_globally_and_at_most_1_208_gb_locally():
    scout = CacheLayout(SCOUT, torch.bfloat16)
    local_bytes = scout.sequence_bytes(8192) - 8192 * 49_152
    assert scout.sequence_bytes(1_000_001) - scout.sequence_bytes(1_000_000) == 49_152
    assert local_bytes == 1_207_959_552
    assert scout.sequence_bytes(10_000_000) == 10_000_000 * 49_152 + local_bytes


@given(st.integers(0, 40), st.integers(1, 40))
def test_segments_cover_the_range_and_never_cross_a_chunk(start, length):
    pieces = list(layout(attention_chunk=8).segments(start, start + length))
    assert [position for low, high in pieces for position in range(low, high)] == list(range(start, start + length))
    assert all(low // 8 == (high - 1) // 8 for low, high in pieces)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12))
def test_any_split_shows_global_layers_every_token_and_local_layers_their_chunk(steps):
    cache = SequenceCache(layout(attention_chunk=8), sum(steps), CPU)
    position = 0
    for step in steps:
        for low, high in layout(attention_chunk=8).segments(position, position + step):
            new = token_kv(low, high - low)
            for layer, first in ((0, low // 8 * 8), (3, 0)):
                keys_GSC, values_GSC = cache.extend(layer, low, new, -new)
                assert keys_GSC[0, :, 0].tolist() == list(range(first, high))
                assert torch.equal(keys_GSC, -values_GSC)
        position += step


@pytest.mark.parametrize("num_tokens", [1, 7, 8, 9, 64, 200])
def test_a_full_cache_uses_exactly_what_was_reserved(num_tokens):
    cache = SequenceCache(layout(), num_tokens, CPU)
    for low, high in layout().segments(0, num_tokens):
        for layer in range(TINY.num_layers):
            cache.extend(layer, low, token_kv(low, high - low), token_kv(low, high - low))
        assert cache.num_bytes <= layout().sequence_bytes(num_tokens)
    assert cache.num_bytes == layout().sequence_bytes(num_tokens)


def test_a_model_without_chunks_keeps_every_token_in_every_layer():
    whole = layout(attention_chunk=None)
    assert whole.local_layers == ()
    assert list(whole.segments(3, 300)) == [(3, 300)]
