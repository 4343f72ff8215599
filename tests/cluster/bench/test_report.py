import io

import pytest
from rich.console import Console

from cluster.bench.report import describe_load, format_ms, print_report
from cluster.bench.settings import OpenLoop, Replay
from cluster.bench.slo import Slo
from cluster.bench.summary import summarise
from tests.cluster.bench.measured import answered, failed, not_sent, result, settings


def printed(measurements, **changes) -> str:
    found = result(measurements, **changes)
    console = Console(file=io.StringIO(), width=80, soft_wrap=True)
    print_report(found, summarise(found), console)
    return console.file.getvalue()


def test_the_report_says_who_was_asked_what_and_what_came_of_it():
    late = answered(2.0, [(4.0, 1), (6.0, 2)], scheduled_s=1.999)
    text = printed([late, failed(0.0, 1.0), not_sent(1.0)], settings=settings(slo=Slo(ttft=5.0)))
    assert "gRPC localhost:9000, model tiny: closed loop of 2, 8 tokens in, 3 out" in text
    assert "3 requests in 6 s: 1 ok, 1 failed, 1 not sent" in text
    assert "1 x HTTP 500: oops" in text
    assert "goodput           33.3% of requests, 0.167/s" in text
    assert "note: 1 requests were NOT SENT" in text
    assert "time to first token" in text
    assert text.count("2,000") == 14


def test_nothing_is_cut_off_in_eighty_columns():
    text = printed([answered(0.0, [(9.9, 1), (99.999, 2)], scheduled_s=0.0)])
    start = text.index("milliseconds")
    table = text[start : text.index("output tokens/s")].splitlines()
    assert len(table) == 9
    assert max(len(line.rstrip()) for line in table) <= 80


def test_numbers_are_not_cut_where_they_do_not_fit():
    text = printed([answered(0.0, [(999.9, 1), (9999.9, 2)])])
    assert text.count("9,999,900") == 7


def test_a_run_without_answers_is_reported_too():
    assert "0 requests in 0 ms: 0 ok, 0 failed" in printed([])


@pytest.mark.parametrize(("value", "text"), [(0.123, "0.12"), (1.26, "1.3"), (999.94, "999.9"), (6789.4, "6,789")])
def test_milliseconds_have_as_many_digits_as_matter(value, text):
    assert format_ms(value) == text


def test_loads_are_described(tmp_path):
    assert describe_load(settings(arrival=OpenLoop(rate_per_s=2.0))) == "Poisson arrivals, 2/s, 8 tokens in, 3 out"
    bunched = settings(arrival=OpenLoop(rate_per_s=2.0, burstiness=0.5), prompts={"shared_prefix": 4})
    assert describe_load(bunched) == "gamma (burstiness 0.5) arrivals, 2/s, 8 tokens in, 3 out, first 4 shared"
    assert describe_load(settings(arrival=Replay(path=tmp_path / "t.csv"))) == "replay of t.csv, times x 1"
    assert describe_load(settings(prompts={"texts": ("a", "b")})) == "closed loop of 2, 2 texts in, 3 tokens out"
