from __future__ import annotations

from collections import Counter

import pytest

from cluster.planner.hardware import parse_fleet
from cluster.planner.placement import Shape, place, shapes
from models.presets import MAVERICK, SCOUT
from tests.cluster.planner.test_model_bytes import TINY_DENSE

FLEETS = ["2xh100", "8xh100", "2x8xh100", "3x4xh100"]


def placements(text, config=SCOUT, copies=1):
    fleet = parse_fleet(text)
    for shape in shapes(fleet, config, copies=copies, most_experts=config.num_experts):
        placement = place(shape, fleet, config)
        if placement is not None:
            yield fleet, placement


@pytest.mark.parametrize("text", FLEETS)
@pytest.mark.parametrize("copies", [1, 2])
def test_every_expert_is_there_as_often_as_asked_and_never_twice_on_a_device(text, copies):
    found = list(placements(text, copies=copies))
    assert found
    for _, placement in found:
        held = Counter(expert for parts in placement.devices for part in parts for expert in part.experts)
        assert held == dict.fromkeys(range(16), placement.shape.copies)
        assert placement.shape.copies >= copies
        for parts in placement.devices:
            experts = [expert for part in parts for expert in part.experts]
            assert len(experts) == len(set(experts))


@pytest.mark.parametrize("text", ["2x8xh100", "3x4xh100"])
def test_copies_of_an_expert_are_on_different_nodes_as_far_as_there_are(text):
    for fleet, placement in placements(text, MAVERICK, copies=2):
        for expert in (0, 127):
            nodes = [
                fleet.node_of(index)
                for index, parts in enumerate(placement.devices)
                if any(expert in part.experts for part in parts)
            ]
            assert len(set(nodes)) == min(fleet.nodes, placement.shape.copies)


@pytest.mark.parametrize("text", FLEETS)
def test_processes_share_devices_only_where_there_are_more_of_them(text):
    for fleet, placement in placements(text):
        shape = placement.shape
        count = shape.routers + shape.groups * shape.copies + shape.shards
        assert placement.is_shared == (count > fleet.num_devices)
        assert sum(map(len, placement.devices)) == count
        loads = [len(parts) for parts in placement.devices]
        assert max(loads) - min(loads) <= 1


def test_routers_are_spread_evenly_over_the_nodes():
    fleet = parse_fleet("2x8xh100")
    placement = place(Shape(routers=6, groups=5, copies=2), fleet, SCOUT)
    assert placement is not None
    nodes = Counter(
        fleet.node_of(index) for index, parts in enumerate(placement.devices) for part in parts if part.role == "router"
    )
    assert nodes == {0: 3, 1: 3}


def test_one_gpu_keeps_the_experts_in_the_routers_process_and_a_machine_without_runs_two_groups():
    (_, on_gpu), (_, on_cpu) = (next(placements("h100")), next(placements_on_cpu()))
    assert (on_gpu.shape.groups, on_gpu.shape.is_local) == (1, True)
    assert (on_cpu.shape.groups, on_cpu.shape.is_local) == (2, False)


def placements_on_cpu():
    fleet = parse_fleet("cpu", 10**12)
    for shape in shapes(fleet, SCOUT, copies=1, most_experts=16):
        yield fleet, place(shape, fleet, SCOUT)


def test_a_dense_model_has_routers_only():
    for _, placement in placements("4xh100", TINY_DENSE):
        assert placement.shape == Shape(routers=4)
        assert [part.role for parts in placement.devices for part in parts] == ["router"] * 4
