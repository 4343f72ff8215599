import pytest

from cluster.planner.hardware import parse_fleet
from protos.errors import BadConfig


@pytest.mark.parametrize(
    ("text", "nodes", "per_node", "told"),
    [
        ("h100", 1, 1, "1xh100"),
        ("8xH100", 1, 8, "8xh100"),
        ("2x8xh200", 2, 8, "2x8xh200"),
        ("16xh100", 2, 8, "2x8xh100"),
        ("3x4xb200", 3, 4, "3x4xb200"),
    ],
)
def test_a_fleet_is_read_and_told_as_it_is_written(text, nodes, per_node, told):
    fleet = parse_fleet(text)
    assert (fleet.nodes, fleet.per_node, fleet.text) == (nodes, per_node, told)


def test_each_machine_without_gpus_is_a_node():
    fleet = parse_fleet("4xcpu", 16 * 10**9)
    assert (fleet.nodes, fleet.per_node, fleet.device.memory_bytes, fleet.text) == (4, 1, 16 * 10**9, "4xcpu")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8xh10", "kinds are a100, h100"),
        ("h100x8", "such as h100, 8xh100 or 2x8xh200"),
        ("0xh100", "expected 1 to 64"),
        ("16x8xh100", "found 128"),
        ("12xh100", "write nodes of another size as 2x6xh100"),
        ("cpu", "--memory"),
        ("", "found ''"),
    ],
)
def test_what_is_no_fleet_is_refused_with_what_is(text, said):
    with pytest.raises(BadConfig) as caught:
        parse_fleet(text)
    assert said in caught.value.message


def test_memory_can_be_another_than_the_kinds():
    assert parse_fleet("a100", 40 * 10**9).device.memory_bytes == 40 * 10**9


@pytest.mark.parametrize(
    ("text", "factor", "told"), [("h100", 4, "4xh100"), ("8xh100", 2, "2x8xh100"), ("2x4xh100", 2, "4x4xh100")]
)
def test_more_devices_fill_the_node_before_there_are_more_nodes(text, factor, told):
    assert parse_fleet(text).times(factor).text == told
