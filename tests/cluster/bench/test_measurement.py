import pytest

from cluster.bench.measurement import Measurement, Status
from tests.cluster.bench.measured import answered, not_sent


def test_times_are_taken_between_sending_messages_and_the_end():
    found = answered(1.0, [(1.5, 1), (1.75, 1), (2.5, 1)], end_s=2.625)
    assert found.ttft_s == 0.5
    assert found.tpot_s == 0.5
    assert found.gaps_s() == [0.25, 0.75]
    assert found.e2e_s == 1.625
    assert found.num_tokens == 3


def test_time_per_token_counts_the_tokens_of_a_message_not_the_messages():
    assert answered(0.0, [(1.0, 1), (2.0, 4)]).tpot_s == 0.25


def test_the_servers_count_of_tokens_wins():
    found = answered(0.0, [(1.0, None), (3.0, None)], usage_completion_tokens=5)
    assert (found.num_tokens, found.num_arrived_tokens, found.tpot_s) == (5, 2, 0.5)


def test_one_token_has_no_time_per_token():
    found = answered(0.0, [(1.0, 1)])
    assert found.tpot_s is None
    assert found.gaps_s() == []


def test_without_messages_there_is_no_first_token():
    found = Measurement(index=0, prompt_tokens=1, max_tokens=1, usage_completion_tokens=4)
    assert found.ttft_s is None
    assert found.tpot_s is None


@pytest.mark.parametrize(
    ("tokens", "usage", "known"),
    [((1, 2), None, True), ((None, None), None, False), ((None, 1), 2, True), ((None, 1), 3, False)],
)
def test_tokens_per_message_are_known_where_told_or_implied_by_the_total(tokens, usage, known):
    found = answered(0.0, [(1.0, tokens[0]), (2.0, tokens[1])], usage_completion_tokens=usage)
    assert found.knows_tokens_per_message is known


def test_lateness_is_of_scheduled_requests_that_were_sent():
    assert answered(1.5, [(2.0, 1)], scheduled_s=1.25).lateness_s == 0.25
    assert answered(1.5, [(2.0, 1)]).lateness_s is None
    assert not_sent(1.0).lateness_s is None


def test_a_request_counts_as_interrupted_until_it_ends():
    assert Measurement(index=0, prompt_tokens=None, max_tokens=1).status is Status.INTERRUPTED
