import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.stops import StopMatcher
from protos.errors import InvalidRequest

STOPS = st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=5)


@given(STOPS, st.text("abc", max_size=40))
def test_every_character_reports_the_longest_stop_that_ends_there(stops, text):
    matcher = StopMatcher(stops)

    found = [matcher.feed(character) for character in text]

    expected = [
        max((len(stop) for stop in stops if text[:end].endswith(stop)), default=0) for end in range(1, len(text) + 1)
    ]
    assert found == expected


@given(STOPS, st.text("abc", max_size=40))
def test_pending_is_the_longest_end_that_begins_a_stop(stops, text):
    matcher = StopMatcher(stops)
    for character in text:
        matcher.feed(character)

    beginnings = {stop[:length] for stop in stops for length in range(len(stop) + 1)}
    assert matcher.pending == max(len(each) for each in beginnings if text.endswith(each))


def test_an_empty_stop_string_is_refused():
    with pytest.raises(InvalidRequest, match="at least one character"):
        StopMatcher(["a", ""])
