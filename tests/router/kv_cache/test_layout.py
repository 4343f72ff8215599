"""The cache's arithmetic: what each kind of layer keeps, in bytes and pages."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.presets import SCOUT
from protos.errors import BadConfig
from router.kv_cache.layout import CacheLayout
from tests.tiny import TINY


def layout(kv_dtype="float32", page_tokens=4, **changes):
    return CacheLayout(replace(TINY, **changes), kv_dtype, page_tokens)


def test_scout_keeps_48_kib_per_token_globally_and_at_most_1_208_gb_locally():
    scout = CacheLayout(SCOUT, "bfloat16")
    assert scout.global_token_bytes == 49_152
    local_bytes = scout.sequence_bytes(8192) - 8192 * 49_152
    assert local_bytes == 8192 * scout.local_token_bytes == 1_207_959_552
    assert scout.sequence_bytes(10_000_000) == 10_000_000 * 49_152 + local_bytes


@pytest.mark.parametrize(("kv_dtype", "head_bytes"), [("float32", 32), ("float16", 16), ("int8", 8 + 4), ("fp8", 8)])
def test_a_token_takes_its_keys_and_values_and_their_scales(kv_dtype, head_bytes):
    assert layout(kv_dtype).bytes_per_token_layer == 2 * TINY.num_kv_heads * head_bytes


def test_pages_divide_the_chunk():
    assert layout(page_tokens=16, attention_chunk=8).page_tokens == 8
    assert layout(page_tokens=16, attention_chunk=24).page_tokens == 8
    assert layout(page_tokens=16, attention_chunk=None).page_tokens == 16


@given(st.integers(0, 40), st.integers(1, 40))
def test_segments_cover_the_range_and_never_cross_a_chunk(start, length):
    pieces = list(layout(attention_chunk=8).segments(start, start + length))
    assert [position for low, high in pieces for position in range(low, high)] == list(range(start, start + length))
    assert all(low // 8 == (high - 1) // 8 for low, high in pieces)


def test_a_model_without_chunks_keeps_every_token_in_every_layer():
    whole = layout(attention_chunk=None)
    assert whole.local_layers == ()
    assert list(whole.segments(3, 300)) == [(3, 300)]
    assert whole.num_pages(9) == (3, 0)


@given(st.integers(400, 10**6), st.integers(1, 9), st.none() | st.integers(1, 256))
def test_the_two_pools_use_the_memory_and_never_more(kv_bytes, slots, context_length):
    cache = layout()
    try:
        plan = cache.plan(kv_bytes, slots, context_length)
    except BadConfig:
        assert kv_bytes < cache.pages_bytes(1, 1)
        return
    used = cache.pages_bytes(plan.num_global_pages, plan.num_local_pages)
    assert kv_bytes - cache.pages_bytes(1, 1) < used <= kv_bytes
    assert plan.num_local_pages <= slots * TINY.attention_chunk // cache.page_tokens


@given(st.integers(1, 256), st.integers(1, 9))
def test_memory_for_one_sequence_of_the_context_holds_it(context_length, slots):
    cache = layout()
    plan = cache.plan(cache.sequence_bytes(context_length), slots, context_length)
    assert cache.longest_sequence(plan) >= context_length
    num_global, num_local = cache.num_pages(context_length)
    assert plan.num_global_pages >= num_global
    assert plan.num_local_pages >= num_local
