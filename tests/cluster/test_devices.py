from __future__ import annotations

import dataclasses

import pytest

from cluster.config_source import load_config
from cluster.devices import Devices, choose_devices
from cluster.gpu_room import check_room, usable_bytes
from cluster.gpus import Gpu, Gpus
from protos.errors import BadConfig, NotEnoughMemory

GIB = 1024**3
CARD = Gpu(name="NVIDIA H100", memory_bytes=80 * GIB, free_bytes=79 * GIB, capability=(9, 0))
OLD = dataclasses.replace(CARD, name="NVIDIA A100", capability=(8, 0))


def chosen(*assignments, cards: int = 0, groups: int = 2, gpus: Gpus | None = None) -> Devices:
    config = load_config(assignments=assignments)
    return choose_devices(config, 0 if config.experts.in_router else groups, gpus or Gpus((CARD,) * cards))


@pytest.mark.parametrize(
    ("cards", "assignments", "router", "experts"),
    [
        (0, (), "cpu", "cpu"),
        (2, (), "cpu", "cpu"),
        (3, (), "cuda", "cuda"),
        (1, ("experts.in_router=true",), "cuda", "cuda"),
        (1, ("experts.device=cpu",), "cuda", "cpu"),
        (8, ("router.device=cpu",), "cpu", "cpu"),
        (2, ("experts.device=cuda",), "cpu", "cuda"),
        (3, ("experts.device=cuda",), "cuda", "cuda"),
        (1, ("router.device=cuda",), "cuda", "cpu"),
        (3, ("router.device=cuda",), "cuda", "cuda"),
        (3, ("router.dtype=float32",), "cpu", "cpu"),
        (3, ("context.shards=1",), "cpu", "cpu"),
        (4, ("scaling.experts_max_replicas=2",), "cpu", "cpu"),
        (3, ("long.from_tokens=100",), "cpu", "cpu"),
    ],
)
def test_processes_get_gpus_where_there_is_one_for_each_there_may_be(cards, assignments, router, experts):
    devices = chosen(*assignments, cards=cards)
    assert (devices.router, devices.experts) == (router, experts)


def test_old_cards_are_left_alone_unless_they_are_asked_for():
    old = Gpus((OLD,) * 3)
    assert "capability 9.0 and later, NVIDIA A100 has 8.0" in chosen(gpus=old).note
    assert chosen("router.device=cuda", gpus=old).any_gpu


@pytest.mark.parametrize(
    ("cards", "assignments", "words"),
    [
        (0, (), ""),
        (3, (), ""),
        (1, (), "3 processes want a GPU each, there are 1; experts.in_router=true"),
        (1, ("router.device=cuda",), "experts on CPUs: 3 processes"),
        (3, ("router.dtype=float32",), "router.dtype: expected bfloat16 or float16 on GPUs"),
    ],
)
def test_gpus_that_nobody_uses_are_explained(cards, assignments, words):
    note = chosen(*assignments, cards=cards).note
    assert words in note
    assert bool(note) == bool(words)


@pytest.mark.parametrize(
    ("cards", "assignments", "message"),
    [
        (0, ("router.device=cuda",), "router.device: expected 1 GPUs, .* found 0; set router.device to cpu"),
        (1, ("router.device=cuda", "router.replicas=2"), "router.device: expected 2 GPUs"),
        (1, ("experts.device=cuda",), "experts.device: expected 2 GPUs"),
        (2, ("router.device=cuda", "experts.device=cuda"), "router.device and experts.device: expected 3 GPUs"),
        (3, ("router.device=cuda", "router.dtype=float32"), "router.dtype: expected bfloat16 or float16"),
        (3, ("router.device=cuda", "context.shards=1"), "context.shards: expected 0 with routers on GPUs"),
    ],
)
def test_gpus_that_cannot_be_had_or_used_so_are_refused(cards, assignments, message):
    with pytest.raises(BadConfig, match=message):
        chosen(*assignments, cards=cards)


def test_fp8_is_for_gpus_that_have_it():
    fp8 = "model.quantize=fp8"
    assert chosen(fp8, cards=3).experts == "cuda"
    for arguments in ({}, {"cards": 1}, {"gpus": Gpus((OLD,) * 3)}):
        with pytest.raises(BadConfig, match="for weights in fp8, found cpu: quantize to int8 or int4"):
            chosen(fp8, **arguments)
    with pytest.raises(BadConfig, match="fp8, found NVIDIA A100"):
        chosen(fp8, "router.device=cuda", gpus=Gpus((OLD,) * 3))


def test_why_the_driver_shows_none_is_told():
    with pytest.raises(BadConfig, match=r"found 0 \(no driver\)"):
        chosen("router.device=cuda", gpus=Gpus(problem="no driver"))


def test_the_card_with_least_says_what_all_may_use():
    less = dataclasses.replace(CARD, free_bytes=40 * GIB)
    assert usable_bytes(Gpus((CARD, less))) == 40 * GIB - int(0.03 * 80 * GIB) - 10**9


def test_a_card_on_which_the_plan_does_not_fit_after_loading_is_refused_with_what_would():
    check_room(free_bytes=30, kv_bytes=20, workspace=10)
    with pytest.raises(NotEnoughMemory, match=r"router\.kv_bytes .* to at most 19"):
        check_room(free_bytes=29, kv_bytes=20, workspace=10)
