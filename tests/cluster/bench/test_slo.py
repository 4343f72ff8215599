import pytest

from cluster.bench.slo import Slo, parse_slo
from protos.errors import InvalidRequest
from tests.cluster.bench.measured import answered, failed, not_sent

FOUND = answered(0.0, [(0.5, 1), (0.75, 1), (1.5, 1)], end_s=2.0)
"""TTFT 0.5, TPOT 0.5, longest gap 0.75, end to end 2."""


def test_bounds_are_read_by_name():
    assert parse_slo("ttft=500ms, tpot=50ms,e2e=10s") == Slo(ttft=0.5, tpot=0.05, e2e=10.0)
    assert parse_slo("gap=1s").text == "gap <= 1 s"


@pytest.mark.parametrize("bounds", [{"ttft": 0.5}, {"tpot": 0.5}, {"gap": 0.75}, {"e2e": 2.0}])
def test_a_bound_is_kept_up_to_itself_and_broken_below(bounds):
    assert Slo(**bounds).holds(FOUND)
    [(name, bound)] = bounds.items()
    assert not Slo(**{name: bound - 0.001}).holds(FOUND)


def test_one_broken_bound_is_enough():
    assert not Slo(ttft=1.0, tpot=0.1).holds(FOUND)


def test_a_single_token_keeps_every_bound_between_tokens():
    assert Slo(tpot=0.001, gap=0.001).holds(answered(0.0, [(1.0, 1)]))


def test_what_failed_or_was_not_sent_is_never_good():
    assert not Slo(ttft=99.0).holds(failed(0.0, 1.0))
    assert not Slo(ttft=99.0).holds(not_sent(0.0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected NAME=DURATION with a name of ttft, tpot, gap, e2e"),
        ("latency=5s", "found 'latency=5s'"),
        ("ttft", "found 'ttft'"),
        ("ttft=1s,ttft=2s", "expected ttft once"),
        ("ttft=soon", "--slo ttft: expected a duration"),
    ],
)
def test_malformed_bounds_are_refused(text, message):
    with pytest.raises(InvalidRequest, match=message):
        parse_slo(text)
