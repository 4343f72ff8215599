import pytest

from cluster.bench.statistics import describe


def test_percentiles_interpolate_between_ranks():
    found = describe([4.0, 1.0, 3.0, 2.0, 5.0])
    assert (found.count, found.mean, found.min, found.p50, found.max) == (5, 3.0, 1.0, 3.0, 5.0)
    assert (found.p90, found.p95, found.p99) == pytest.approx((4.6, 4.8, 4.96))


def test_values_count_as_often_as_they_are_repeated():
    assert describe([1.0, 10.0], [3, 1]) == describe([1.0, 1.0, 1.0, 10.0])


def test_one_value_is_all_percentiles():
    found = describe([7.0])
    assert {found.mean, found.min, found.p50, found.p99, found.max} == {7.0}


def test_no_values_have_no_distribution():
    assert describe([]) is None
    assert describe([1.0], [0]) is None
