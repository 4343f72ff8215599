"""Bytes of devices, and what fits into the rest: against published sizes, and against memory that is really taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cluster.planner.capacity_plan import best_plan, candidates
from cluster.planner.memory import Memory
from context.segments import SegmentStore
from models.presets import SCOUT
from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import KvStorage
from router.paging.paged_kv import PagingPlan
from tests.cluster.planner.questions import PROFILES, ask, ask_profile


@pytest.mark.parametrize(
    ("kv_dtype", "dtype", "global_bytes", "local_bytes"),
    [
        ("bfloat16", torch.bfloat16, 49_152, 147_456),
        ("float32", torch.float32, 98_304, 294_912),
        ("fp8", torch.bfloat16, 24_576, 73_728),
        ("int8", torch.bfloat16, 12 * 2 * 8 * (128 + 4), 36 * 2 * 8 * (128 + 4)),
    ],
)
def test_a_token_of_scout_takes_in_the_allocator_what_the_formula_says(kv_dtype, dtype, global_bytes, local_bytes):
    layout = CacheLayout(SCOUT, kv_dtype)
    plan = PagingPlan(page_tokens=16, chunk=8192, has_global=True, num_global_pages=5, num_local_pages=3)
    storage = KvStorage(layout, plan, dtype, torch.device("cpu"))
    for is_local, pages, token_bytes in ((False, 5, global_bytes), (True, 3, local_bytes)):
        taken = sum(part.untyped_storage().nbytes() for part in storage.parts(is_local))
        assert taken == pages * 16 * token_bytes
    assert (layout.global_token_bytes, layout.local_token_bytes) == (global_bytes, local_bytes)
    assert layout.plan_bytes(plan) == 5 * 16 * global_bytes + 3 * 16 * local_bytes


def test_a_sequence_of_scout_keeps_at_most_1_208_gb_in_local_layers():
    layout = CacheLayout(SCOUT, "bfloat16")
    for tokens in (8192, 8193, 10_000_000):
        local = layout.pages_bytes(0, layout.num_pages(tokens)[1])
        assert local == 1_207_959_552


@pytest.mark.parametrize("profile", PROFILES)
def test_components_add_up_to_each_device_and_none_is_overfull(profile):
    question = ask_profile(profile)
    for plan in candidates(question):
        for index in range(question.fleet.num_devices):
            held = plan.memory.device_bytes(index)
            assert sum(held.values()) == question.fleet.device.memory_bytes
            # A cache that the model's longest context cannot fill leaves memory free; none takes what is not there.
            assert min(held.values()) >= 0


def test_scout_in_int4_fits_one_card_of_80_gb_with_a_quarter_of_a_million_tokens():
    plan = best_plan(ask("scout", "h100", weights="int4", context=262_144, concurrency=1))
    assert plan is not None
    assert 300_000 < plan.memory.longest_context(1) < 350_000
    held = plan.memory.device_bytes(0)
    assert held["experts"] == pytest.approx(49.83e9, rel=1e-3)
    assert held["KV local"] == 1_207_959_552


def test_scout_in_bf16_does_not_fit_one_card():
    assert best_plan(ask("scout", "h100", context=2, concurrency=1)) is None


@pytest.mark.parametrize(("kind", "shards"), [("h100", 7), ("h200", 4), ("b200", 3)])
def test_ten_million_tokens_of_scout_need_so_many_shards(kind, shards):
    question = ask("scout", f"2x8x{kind}", context=10_485_760, concurrency=1)
    enough = {
        plan.placement.shape.shards
        for plan in candidates(question)
        if plan.memory.fits(question.context, 1) and not plan.placement.is_shared
    }
    assert min(enough) == shards
    # 515 GB of keys and values, over what a card has besides margin, process and workspace.
    assert shards == -(-10_485_760 * 49_152 // int(0.97 * question.fleet.device.memory_bytes - 1.2e9))


def test_maverick_in_fp8_fits_eight_h200_with_a_million_tokens():
    plan = best_plan(ask("maverick", "8xh200", weights="fp8", context=1_048_576, concurrency=4))
    assert plan is not None
    experts = {
        expert: held["experts"]
        for index, parts in enumerate(plan.placement.devices)
        for held in [plan.memory.device_bytes(index)]
        for part in parts
        for expert in part.experts
    }
    assert len(experts) == 128
    held = [plan.memory.device_bytes(index)["experts"] for index in range(8)]
    assert sum(held) == pytest.approx(plan.placement.shape.copies * 386.8e9, rel=1e-3)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_largest_that_fits_fits_and_one_more_does_not(profile):
    plan = best_plan(ask_profile(profile))
    assert plan is not None
    memory, question = plan.memory, plan.question
    longest, most = memory.longest_context(question.concurrency), memory.most_sequences(question.context)
    assert memory.fits(longest, question.concurrency)
    assert memory.fits(question.context, most)
    assert longest == question.config.max_positions or not memory.fits(longest + 1, question.concurrency)
    assert not memory.fits(question.context, most + 1)


@pytest.mark.parametrize("profile", PROFILES)
def test_the_cache_that_is_deployed_holds_what_was_asked(profile):
    plan = best_plan(ask_profile(profile))
    assert plan is not None
    memory, question = plan.memory, plan.question
    layout = memory.router_layout
    if not plan.placement.shape.shards:
        paging = layout.plan(memory.kv_bytes, memory.slots, question.context)
        num_global, num_local = layout.num_pages(question.context)
        assert paging.num_global_pages >= memory.slots * num_global
        assert paging.num_local_pages >= memory.slots * num_local
        assert layout.longest_sequence(paging) >= question.context


def test_a_shard_holds_in_the_allocator_the_tokens_that_are_planned():
    (memory, *_) = (
        plan.memory
        for plan in candidates(ask("scout", "8xh100", context=1_048_576, concurrency=1))
        if plan.placement.shape.shards
    )
    page_bytes = memory.shard_bytes // memory.shard_pages
    store = SegmentStore(
        SCOUT, kv_dtype="bfloat16", kv_bytes=3 * page_bytes, dtype=torch.bfloat16, device=torch.device("cpu")
    )
    assert store.total_tokens * 49_152 == 3 * page_bytes


def test_shards_hold_the_tokens_of_all_sequences_together():
    question = ask("scout", "2x8xh100", context=1_048_576, concurrency=1)
    sharded = [plan.memory for plan in candidates(question) if plan.placement.shape.shards == 7]
    assert sharded
    for memory in sharded:
        tokens = 7 * memory.shard_pages * 64
        most = tokens // question.context
        assert memory.fits(question.context, most)
        assert not memory.fits(question.context, most + 1)
        assert tokens * 49_152 == 7 * memory.shard_bytes


def test_keys_and_values_in_8_bits_make_room_for_twice_the_tokens():
    question = ask("scout", "h100", weights="int4", concurrency=1)
    (bf16,), (fp8,) = (list(candidates(replace(question, kv_dtype=each))) for each in ("bfloat16", "fp8"))
    # Local layers free half of theirs, too.
    assert fp8.memory.longest_context(1) > 2 * bf16.memory.longest_context(1)


def test_sharing_a_device_shares_its_room():
    question = ask("scout", "8xh100")
    shared = [plan.memory for plan in candidates(question) if plan.placement.is_shared]
    assert shared
    for memory in shared:
        assert isinstance(memory, Memory)
        assert memory.router_room <= min(
            room
            for room, parts in zip(memory.kv_rooms, memory.placement.devices, strict=True)
            if any(part.role == "router" for part in parts)
        )
