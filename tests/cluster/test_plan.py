import dataclasses

import pytest

from cluster.config_source import load_config
from cluster.expert_groups import group_experts
from cluster.gpu_room import usable_bytes, workspace_bytes
from cluster.gpus import Gpu, Gpus
from cluster.machine import Machine
from cluster.plan import make_plan
from cluster.planned_model import load_planned_model
from cluster.weight_bytes import WeightBytes
from models.checkpoint import open_checkpoint
from protos.errors import BadConfig, NotEnoughMemory
from router.kv_cache.layout import ELEMENT_BYTES, CacheLayout

LAPTOP = Machine(cores=8, free_bytes=8 * 1024**3)
CARD = Gpu(name="card", memory_bytes=4 * 1024**3, free_bytes=4 * 1024**3, capability=(9, 0))
ONE_GPU, THREE_GPUS = (dataclasses.replace(LAPTOP, gpus=Gpus((CARD,) * count)) for count in (1, 3))


@pytest.fixture(scope="module")
def checkpoint(demo_dir):
    return open_checkpoint(demo_dir)


def plan_for(checkpoint, *assignments, machine=LAPTOP):
    return make_plan(load_config(assignments=assignments), checkpoint, "demo", machine)


@pytest.mark.parametrize(
    ("num_experts", "num_groups", "sizes"),
    [(16, None, [8, 8]), (1, None, [1]), (16, 5, [3, 3, 3, 3, 4]), (4, 4, [1, 1, 1, 1]), (0, None, []), (0, 3, [])],
)
def test_groups_are_even_and_hold_every_expert_once(num_experts, num_groups, sizes):
    groups = group_experts(num_experts, num_groups)
    assert sorted(len(group) for group in groups) == sizes
    assert [expert for group in groups for expert in group] == list(range(num_experts))


def test_more_groups_than_experts_are_refused(checkpoint):
    with pytest.raises(BadConfig, match="expected at most 8"):
        plan_for(checkpoint, "experts.groups=9")


def test_routers_and_experts_take_turns_with_all_cores(checkpoint):
    plan = plan_for(checkpoint, "experts.groups=3", "router.replicas=2")
    assert (plan.router_threads, plan.expert_threads, plan.num_replicas) == (4, 2, 5)


def test_threads_can_be_set(checkpoint):
    plan = plan_for(checkpoint, "router.threads=5", "experts.threads=6")
    assert (plan.router_threads, plan.expert_threads) == (5, 6)


def test_a_cache_for_every_slot_is_planned_when_it_fits(checkpoint):
    plan = plan_for(checkpoint)
    layout = CacheLayout(plan.config, "float32")
    assert plan.engine_limits.context_length == plan.config.max_positions
    assert plan.engine_limits.kv_bytes == 16 * layout.sequence_bytes(plan.config.max_positions)


def test_a_small_cache_shortens_the_context(checkpoint):
    plan = plan_for(checkpoint, "router.kv_bytes=2000000")
    assert 2 < plan.engine_limits.context_length < plan.config.max_positions


def test_a_context_beyond_the_model_is_refused(checkpoint):
    with pytest.raises(BadConfig, match="at most the model's 4096"):
        plan_for(checkpoint, "model.context_length=4097")


def test_a_context_the_cache_cannot_hold_is_refused(checkpoint):
    with pytest.raises(NotEnoughMemory, match="context of 4096 tokens"):
        plan_for(checkpoint, "model.context_length=4096", "router.kv_bytes=100000")


def test_a_machine_too_small_is_refused_with_both_numbers(checkpoint):
    machine = dataclasses.replace(LAPTOP, free_bytes=1024**3)
    with pytest.raises(NotEnoughMemory, match=r"found 1\.0 GiB"):
        plan_for(checkpoint, machine=machine)


def test_weights_are_counted_in_the_dtype_computed_in_and_once_per_replica(checkpoint):
    stored = checkpoint.total_bytes  # bfloat16
    experts = stored - checkpoint.router_bytes
    assert plan_for(checkpoint).weight_bytes == 2 * stored
    assert plan_for(checkpoint, "router.dtype=bfloat16").weight_bytes == stored
    two_each = plan_for(checkpoint, "router.dtype=bfloat16", "experts.replicas_per_group=2")
    assert two_each.weight_bytes == stored + experts


@pytest.mark.parametrize(("quantize", "bits"), [("int8", 8), ("int4", 5)])
def test_rounded_weights_are_counted_in_their_bits_and_embeddings_in_full(checkpoint, quantize, bits):
    embeddings = checkpoint.num_bytes("embed")  # bfloat16; the LM head has as many weights, in 8 bits
    rounded = (checkpoint.total_bytes - 2 * embeddings) // 2 * bits // 8
    plan = plan_for(checkpoint, "router.dtype=bfloat16", f"model.quantize={quantize}")
    assert plan.weight_bytes == pytest.approx(embeddings + embeddings // 2 + rounded, abs=2)


# Routers for long requests.


def test_without_a_length_to_begin_at_all_requests_share_the_routers(checkpoint):
    plan = plan_for(checkpoint)
    assert plan.long is None
    assert list(plan.pools) == ["Router"]


def test_routers_hold_what_is_not_long_and_those_for_long_requests_the_whole_context(checkpoint):
    plan = plan_for(checkpoint, "long.from_tokens=1000", "long.slots=3", "long.step_tokens=64", "long.priority=normal")
    standard, long = plan.pools["Router"].engine_limits, plan.pools["LongRouter"].engine_limits
    layout = CacheLayout(plan.config, "float32")
    assert (standard.context_length, long.context_length) == (999, plan.config.max_positions)
    assert plan.context_length == plan.config.max_positions
    assert standard.kv_bytes == 16 * layout.sequence_bytes(999)
    assert long.kv_bytes == 3 * layout.sequence_bytes(plan.config.max_positions)
    assert (long.slots, long.step_tokens, long.idle_priority, long.max_waiting) == (3, 64, False, 0)
    assert (standard.slots, standard.step_tokens, standard.idle_priority, standard.max_waiting) == (
        16,
        2048,
        False,
        256,
    )


def test_long_prompts_are_computed_on_idle_cores_unless_told_otherwise(checkpoint):
    assert plan_for(checkpoint, "long.from_tokens=1000").long.engine_limits.idle_priority


@pytest.mark.parametrize(("assignment", "expected"), [("long", 3000), ("model", 3000)])
def test_either_setting_bounds_the_longest_context(checkpoint, assignment, expected):
    plan = plan_for(checkpoint, "long.from_tokens=1000", f"{assignment}.context_length={expected}")
    assert plan.context_length == expected


def test_context_shards_belong_to_routers_for_long_requests_where_there_are_some(checkpoint):
    shards = ("context.shards=2", "context.kv_bytes=100000000")
    alone, beside = plan_for(checkpoint, *shards), plan_for(checkpoint, *shards, "long.from_tokens=1000")
    assert alone.engine_limits.on_shards
    assert [pool.engine_limits.on_shards for pool in beside.pools.values()] == [False, True]
    assert beside.pools["Router"].engine_limits.prefix_cache


def test_contexts_may_be_as_long_as_all_the_shards_there_may_be_hold(checkpoint):
    two = ("context.shards=2", f"context.kv_bytes={3 * 128 * 2048}", "context.segment_tokens=128")
    fixed, growing = plan_for(checkpoint, *two), plan_for(checkpoint, *two, "context.max_shards=4")
    assert growing.context_length == pytest.approx(2 * fixed.context_length, abs=1)
    assert growing.needed_bytes > fixed.needed_bytes + 2 * 3 * 128 * 2048


def test_only_the_last_segment_of_a_context_may_be_short_for_each_lies_on_one_shard(checkpoint):
    kv_bytes = (3 * 128 + 50) * 2048
    plan = plan_for(checkpoint, "context.shards=2", f"context.kv_bytes={kv_bytes}", "context.segment_tokens=128")
    assert plan.context_length == 2 * 3 * 128 + 50


@pytest.mark.parametrize(
    ("assignments", "expected"),
    [
        ((), 1),
        (("scaling.experts_max_replicas=2",), 1),
        (("scaling.experts_max_replicas=3",), 2),
        (("scaling.experts_max_replicas=4",), 2),
        (("scaling.experts_max_replicas=4", "experts.warm_spares=0"), 0),
    ],
)
def test_there_are_as_many_spare_processes_as_a_group_may_grow_by_at_once(checkpoint, assignments, expected):
    assert plan_for(checkpoint, *assignments).warm_spares == expected


def test_routers_for_long_requests_count_as_processes_with_weights_and_caches(checkpoint):
    plain, pooled = plan_for(checkpoint), plan_for(checkpoint, "long.from_tokens=1000", "long.max_replicas=2")
    assert pooled.num_replicas == plain.num_replicas + 2
    assert pooled.weight_bytes > plain.weight_bytes
    kv_bytes = pooled.engine_limits.kv_bytes + 2 * pooled.long.engine_limits.kv_bytes
    assert pooled.needed_bytes - pooled.weight_bytes - plain.needed_bytes + plain.weight_bytes > (
        kv_bytes - plain.engine_limits.kv_bytes
    )


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (("long.from_tokens=5000",), "long.from_tokens: expected at most"),
        (("long.from_tokens=1000", "long.context_length=900"), "expected at most 900"),
        (("long.from_tokens=1000", "long.context_length=10000"), "long.context_length: expected at most the model's"),
        (("long.from_tokens=1000", "scaling.budget=3"), "scaling.budget: expected at least 4"),
    ],
)
def test_pools_that_cannot_work_are_refused(checkpoint, assignments, message):
    with pytest.raises(BadConfig, match=message):
        plan_for(checkpoint, *assignments)


def test_fp8_without_a_gpu_is_refused_at_start(checkpoint):
    with pytest.raises(BadConfig, match=r"expected a GPU .* for weights in fp8, found cpu: quantize to int8 or int4"):
        plan_for(checkpoint, "model.quantize=fp8")


@pytest.mark.parametrize("section", ["router", "long"])
def test_a_cache_too_small_for_one_context_names_its_own_setting(checkpoint, section):
    with pytest.raises(NotEnoughMemory, match=rf"raise {section}\.kv_bytes"):
        plan_for(checkpoint, "long.from_tokens=1000", "long.context_length=4000", f"{section}.kv_bytes=100000")


# Experts in the router's process.


def test_experts_in_the_router_are_no_processes_of_their_own_and_counted_once_per_router(checkpoint):
    plan = plan_for(checkpoint, "experts.in_router=true", "router.dtype=bfloat16", "router.replicas=2")
    assert plan.experts_in_router
    assert (plan.expert_groups, plan.num_replicas, plan.spare_bytes) == ((), 2, 0)
    assert plan.weight_bytes == 2 * checkpoint.total_bytes
    assert load_planned_model(plan).experts_in_router


def test_a_dense_model_has_no_experts_to_be_in_the_router(shared_dir):
    dense = open_checkpoint(shared_dir / "goldens" / "llama3")
    plan, other = plan_for(dense, "experts.in_router=true"), plan_for(dense)
    assert not plan.experts_in_router
    assert plan.needed_bytes == other.needed_bytes


# GPUs.


def test_on_gpus_everything_is_bfloat16_and_nothing_of_it_in_main_memory(checkpoint):
    plan = plan_for(checkpoint, machine=THREE_GPUS)
    assert (plan.dtype, plan.num_gpus, plan.weight_bytes) == ("bfloat16", 3, 0)
    on_cpu = plan_for(checkpoint, "router.dtype=bfloat16")
    assert on_cpu.needed_bytes - plan.needed_bytes == on_cpu.weight_bytes + on_cpu.engine_limits.kv_bytes


def one_card(checkpoint, room_bytes):
    """Return a machine whose card has so much left for a cache beside the whole model."""
    plan = plan_for(checkpoint, "experts.in_router=true", machine=ONE_GPU)
    limits = plan.engine_limits
    sizes = {"step_tokens": limits.step_tokens, "slots": limits.slots, "item_bytes": ELEMENT_BYTES[plan.dtype]}
    workspace = workspace_bytes(plan.config, in_router=True, **sizes)
    assert workspace > workspace_bytes(plan.config, in_router=False, **sizes)
    too_much = usable_bytes(ONE_GPU.gpus) - checkpoint.total_bytes - workspace - room_bytes
    return dataclasses.replace(LAPTOP, gpus=Gpus((dataclasses.replace(CARD, free_bytes=CARD.free_bytes - too_much),)))


def test_a_cache_on_a_gpu_has_what_weights_and_workspace_leave_of_the_card(checkpoint):
    plan = plan_for(checkpoint, "experts.in_router=true", machine=one_card(checkpoint, 2_000_000))
    assert plan.engine_limits.kv_bytes == 2_000_000
    assert 2 < plan.context_length < plan.config.max_positions


@pytest.mark.parametrize(
    ("room_bytes", "assignments"),
    [(-1, ()), (100, ()), (2_000_000, ("router.kv_bytes=2000001",)), (2_000_000, ("model.context_length=4096",))],
)
def test_a_card_too_small_is_refused(checkpoint, room_bytes, assignments):
    machine = one_card(checkpoint, room_bytes)
    with pytest.raises(NotEnoughMemory, match="to fit a router's GPU beside its weights"):
        plan_for(checkpoint, "experts.in_router=true", *assignments, machine=machine)


def test_expert_replicas_have_room_for_copies_on_their_own_card(checkpoint):
    expert_bytes = checkpoint.expert_weights * 2 * 17 // 16
    plan = plan_for(checkpoint, "experts.spare_experts=4", machine=THREE_GPUS)
    assert plan.spare_bytes == pytest.approx(4 * expert_bytes, abs=4)
    with pytest.raises(NotEnoughMemory, match="copies that a GPU may take on"):
        plan_for(checkpoint, "experts.spare_experts=10000", machine=THREE_GPUS)


def test_a_group_too_large_for_a_card_is_refused(checkpoint):
    small = dataclasses.replace(LAPTOP, gpus=Gpus((dataclasses.replace(CARD, free_bytes=10**9),) * 3))
    with pytest.raises(NotEnoughMemory, match="GPU with room for 4 experts"):
        plan_for(checkpoint, "router.device=cpu", "experts.device=cuda", machine=small)


def test_four_bits_are_fewer_bytes_on_a_gpu_for_their_groups_are_larger(checkpoint):
    plan = plan_for(checkpoint, "experts.in_router=true", "model.quantize=int4", machine=ONE_GPU)
    weights = WeightBytes(checkpoint, ELEMENT_BYTES[plan.dtype], "int4")
    assert weights.experts("cuda") * 8 == checkpoint.config.num_experts * checkpoint.expert_weights * 4.125
    assert weights.experts("cuda") < weights.experts("cpu")


def test_codes_of_a_release_are_counted_as_they_are_where_they_stay(shared_dir):
    release = open_checkpoint(shared_dir / "goldens" / "scout_fp8ct")
    weights = WeightBytes(release, 2, None)
    num_experts = release.config.num_experts * release.expert_weights
    assert (weights.experts("cuda"), weights.experts("cpu")) == (num_experts, 2 * num_experts)
    assert weights.router("cuda") <= weights.router("cpu")


def test_pages_beside_a_gpus_cache_leave_most_of_the_hosts_memory_alone(checkpoint):
    little = dataclasses.replace(ONE_GPU, free_bytes=3 * 1024**3)
    assert plan_for(checkpoint, "experts.in_router=true", machine=ONE_GPU).engine_limits.host_kv_bytes > 0
    limits = plan_for(
        checkpoint, "experts.in_router=true", "router.kv_bytes=2500000000", "router.replicas=1", machine=little
    ).engine_limits
    assert limits.host_kv_bytes == min(limits.kv_bytes // 4, little.free_bytes // 4)
