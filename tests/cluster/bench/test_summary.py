import pytest

from cluster.bench.measurement import Status
from cluster.bench.slo import Slo
from cluster.bench.summary import concurrency_steps, measure_latencies, summarise
from tests.cluster.bench.measured import answered, failed, not_sent, result, settings

ONE = answered(0.0, [(0.5, 1), (1.0, 1), (2.0, 2)], end_s=2.0, usage_prompt_tokens=20, cached_tokens=16)
TWO = answered(1.0, [(2.0, 1), (4.0, 1)], end_s=4.0)
FAILED = failed(1.0, 3.0)
CUT = answered(3.0, [(3.5, 1)], end_s=4.0, status=Status.INTERRUPTED)


def test_requests_are_counted_by_how_they_ended():
    counts = summarise(result([ONE, TWO, FAILED, CUT, not_sent(1.0)])).requests
    assert (counts.total, counts.ok, counts.failed, counts.not_sent, counts.interrupted) == (5, 2, 1, 1, 1)


def test_latencies_are_of_whole_answers_only():
    found = summarise(result([ONE, TWO, FAILED, CUT])).latencies
    assert (found.ttft_ms.count, found.ttft_ms.min, found.ttft_ms.max) == (2, 500, 1000)
    assert (found.tpot_ms.min, found.tpot_ms.max) == (500, 2000)
    assert (found.e2e_ms.min, found.e2e_ms.max) == (2000, 3000)


def test_a_message_of_two_tokens_is_one_gap_and_two_tokens_of_half_of_it():
    found = measure_latencies([ONE])
    assert (found.gap_ms.count, found.gap_ms.mean, found.gap_ms.max) == (2, 750, 1000)
    assert (found.itl_ms.count, found.itl_ms.mean, found.itl_ms.max) == (3, 500, 500)


def test_messages_whose_tokens_nobody_tells_count_as_one_token():
    found = measure_latencies([answered(0.0, [(1.0, None), (3.0, None)], usage_completion_tokens=9)])
    assert (found.itl_ms.count, found.itl_ms.mean) == (1, 2000)


def test_throughput_is_everything_that_came_between_the_first_sending_and_the_last_end():
    found = summarise(result([ONE, TWO, FAILED, CUT])).throughput
    assert found.window_s == 4.0
    assert found.requests_per_s == 2 / 4
    assert (found.output_tokens, found.output_tokens_per_s) == (4 + 2 + 1 + 1, 2.0)
    assert (found.prompt_tokens, found.prompt_tokens_per_s) == (20 + 3 * 10, 12.5)
    assert found.cached_tokens == 16


def test_cached_tokens_are_unknown_where_no_server_tells():
    assert summarise(result([TWO])).throughput.cached_tokens is None


def test_goodput_counts_failures_and_unsent_requests_and_leaves_out_interrupted_ones():
    found = summarise(result([ONE, TWO, FAILED, CUT, not_sent(1.0)], settings=settings(slo=Slo(ttft=0.5)))).goodput
    assert (found.good, found.fraction, found.requests_per_s) == (1, 0.25, 0.25)
    assert summarise(result([ONE])).goodput is None


def test_errors_are_counted_by_kind_with_the_first_of_each_as_example():
    errors = [("HTTP 500", "first"), ("timeout", "x"), ("HTTP 500", "y")]
    found = summarise(result([failed(0.0, 1.0, *error) for error in errors])).errors
    assert [(each.kind, each.count, each.example) for each in found] == [("HTTP 500", 2, "first"), ("timeout", 1, "x")]


def test_requests_in_flight_are_followed_and_averaged():
    assert concurrency_steps([ONE, TWO]) == [(0.0, 1), (1.0, 2), (2.0, 1), (4.0, 0)]
    client = summarise(result([ONE, TWO])).client
    assert (client.concurrency_peak, client.concurrency_mean) == (2, (2 + 3) / 4)


def test_one_that_ends_as_another_starts_does_not_overlap_it():
    assert concurrency_steps([answered(0.0, [(1.0, 1)]), answered(1.0, [(2.0, 1)])]) == [(0, 1), (1, 0), (1, 1), (2, 0)]


def test_lateness_is_of_the_requests_that_were_due():
    late = answered(1.25, [(2.0, 1)], scheduled_s=1.0)
    assert summarise(result([late, not_sent(2.0)])).client.lateness_ms.max == pytest.approx(250)
    assert summarise(result([ONE])).client.lateness_ms is None


def test_a_run_without_requests_has_a_summary_too():
    found = summarise(result([], lags_s=[], settings=settings(slo=Slo(ttft=1.0))))
    assert found.requests.total == 0
    assert found.latencies.ttft_ms is None
    assert (found.throughput.output_tokens_per_s, found.goodput.fraction, found.client.concurrency_peak) == (0, 0, 0)
