from __future__ import annotations

import pytest
import torch
import yaml

from cluster.config import ClusterConfig
from cluster.config_source import load_config, with_values
from cluster.planner.advice import plan_or_refuse
from cluster.planner.missing import missing
from cluster.planner.values import as_values, settings, split_known, workers
from router.acceptance import check_limits
from router.limits import EngineLimits
from tests.cluster.planner.questions import PROFILES, ask, ask_profile


@pytest.mark.parametrize("profile", PROFILES)
def test_the_settings_of_every_profile_are_read_by_the_loader_of_herd_serve(profile, tmp_path):
    plan = plan_or_refuse(ask_profile(profile))
    fragment = yaml.safe_load(as_values(plan, "herd plan"))
    file = tmp_path / "herd.yaml"
    file.write_text(yaml.safe_dump(fragment["settings"]))
    config = load_config(file)
    shape = plan.placement.shape
    assert config.router.replicas == shape.routers
    assert (config.experts.groups, config.experts.replicas_per_group) == (shape.groups, shape.copies)
    assert config.model.context_length == plan.question.context
    assert config.router.kv_bytes == plan.memory.kv_bytes
    assert config.router.slots * shape.routers >= plan.question.concurrency
    limits = EngineLimits(
        context_length=config.model.context_length,
        kv_bytes=config.router.kv_bytes,
        slots=config.router.slots,
        step_tokens=config.router.step_tokens,
        experts_in_process=config.experts.in_router,
    )
    check_limits(limits, limits.layout(plan.question.config, "bfloat16"), torch.bfloat16)


@pytest.mark.parametrize("profile", PROFILES)
def test_every_process_and_every_gpu_of_a_plan_is_in_its_workers(profile):
    plan = plan_or_refuse(ask_profile(profile))
    groups = workers(plan)
    gpus = sum(group["replicas"] * group["gpus"] for group in groups.values())
    assert gpus == pytest.approx(sum(bool(parts) for parts in plan.placement.devices), abs=0.01)
    assert groups["frontDoors"]["replicas"] == plan.num_front_doors


def test_copies_on_several_nodes_are_asked_to_be_spread():
    assert workers(plan_or_refuse(ask_profile("maverick-2x8-multinode")))["experts"]["spreadCopiesOverNodes"] is True


def test_what_this_version_does_not_know_is_a_comment_and_not_lost():
    plan = plan_or_refuse(ask("scout", "2x8xh100", context=10_000_000, concurrency=1))
    wanted = settings(plan)
    known, unknown = split_known(wanted)
    text = as_values(plan, "herd plan")
    for section, keys in unknown.items():
        for key in keys:
            assert f"#   {section}.{key}: " in text
    for section, keys in wanted.items():
        assert {*known.get(section, {}), *unknown.get(section, {})} == set(keys)
    with_values(ClusterConfig(), known, source="")
    assert "cannot deploy it: context shards beside routers on GPUs" in text


@pytest.mark.parametrize(
    ("question", "words"),
    [
        (ask("scout", "2x8xh100", context=10_000_000, concurrency=1), ["several machines", "context shards"]),
        (ask("scout", "2xh100", weights="int4", concurrency=1, copies=2), ["share a GPU"]),
        (ask_profile("scout-1xh100-int4"), []),
        (ask("scout", "cpu", 300 * 10**9, context=8192), []),
    ],
)
def test_what_this_version_does_not_do_of_a_plan_is_told_in_words(question, words):
    told = list(missing(plan_or_refuse(question)))
    assert len(told) == len(words)
    assert all(word in line for word, line in zip(words, told, strict=True))


@pytest.mark.parametrize("profile", PROFILES)
def test_devices_and_experts_in_the_routers_process_are_settings(profile):
    plan = plan_or_refuse(ask_profile(profile))
    known, _ = split_known(settings(plan))
    assert known["router"]["device"] == "cuda"
    assert known["experts"].get("in_router", False) == plan.placement.shape.is_local


def test_a_presets_weights_are_where_the_chart_mounts_them_and_a_folders_where_they_are():
    plan = plan_or_refuse(ask("scout", "8xh100"))
    assert settings(plan)["model"]["path"] == "/models/scout"
    plan = plan_or_refuse(ask("scout", "8xh100", model_name="/data/mine"))
    assert settings(plan)["model"]["path"] == "/data/mine"
