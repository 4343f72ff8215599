"""The queries that tests evaluate have the values that Prometheus documents for them."""

import pytest

from tests.cluster.promql_value import Query, scraped

PAGE = b"""\
# TYPE herd_slots gauge
herd_slots{replica="a"} 4
herd_slots{replica="b"} 6
# TYPE herd_info gauge
herd_info{model="tiny"} 1
# TYPE late_seconds histogram
late_seconds_bucket{le="1"} 50
late_seconds_bucket{le="2"} 90
late_seconds_bucket{le="+Inf"} 100
late_seconds_count 100
late_seconds_sum 0
"""
LATER = PAGE.replace(b" 6\n", b" 36\n")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("sum(herd_slots)", [20]),
        ("sum(max by (replica) (herd_slots))", [10]),
        ("max by (replica) (herd_slots) > 4", [6]),
        ("count(max by (replica) (herd_slots) == 5)", []),
        ("count(max by (replica) (herd_slots) == 5) or vector(0)", [0]),
        ('max(herd_slots{replica=~"a|c"})', [4]),
        ('max(herd_slots{replica!="b",job="herd"})', [4]),
        ('max(herd_slots{job="other"})', []),
        ("absent(herd_slots)", []),
        ('absent(herd_slots{replica="c"})', [1]),
        ("max by (replica) (herd_slots) unless on() max(herd_info)", []),
        ("max by (replica) (herd_slots) unless max(herd_info)", [4, 6]),
        ("max by (replica) (herd_slots) and on() max(herd_info) > 1", []),
        ("max by (replica) (herd_slots) or max(herd_info)", [1, 4, 6]),
        ("max(herd_slots) / clamp_min(max(herd_info), 2)", [3]),
        ("histogram_quantile(0.7, sum by (le) (late_seconds_bucket))", [1.5]),
        ("histogram_quantile(0.95, sum by (le) (late_seconds_bucket))", [2]),
    ],
)
def test_a_query_has_its_value(text, values):
    scrape = scraped([PAGE, PAGE], job="herd")
    assert sorted(Query(text, scrape, scrape).value().values()) == pytest.approx(values)


def test_a_rate_is_what_a_series_grew_by_in_a_second():
    before, now = scraped([PAGE]), scraped([LATER])
    assert Query("sum(rate(herd_slots[5m]))", now, before, seconds=60).value() == {frozenset(): 0.5}


@pytest.mark.parametrize("text", ["deriv(herd_slots[5m])", "herd_slots offset 5m", "herd_slots > herd_info", "5"])
def test_what_is_not_understood_is_refused(text):
    with pytest.raises(ValueError, match="expected"):
        Query(text, {}, {}).value()
