import pytest

from cluster.bench.duration_text import format_duration, parse_duration
from protos.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("500ms", 0.5),
        ("30s", 30),
        ("2m", 120),
        ("1.5 min", 90),
        ("1h", 3600),
        ("250us", 0.00025),
        ("7", 7),
        (".5S", 0.5),
    ],
)
def test_a_duration_is_a_number_and_a_unit(text, seconds):
    assert parse_duration(text, "--timeout") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "ms", "-1s", "0s", "5 days", "1e3", "1:30", "nan", "inf", "9" * 400])
def test_what_is_no_duration_is_refused_by_the_options_name(text):
    with pytest.raises(InvalidRequest, match="--timeout: expected a duration such as"):
        parse_duration(text, "--timeout")


@pytest.mark.parametrize(("seconds", "text"), [(0.5, "500 ms"), (12.34, "12.34 s"), (245, "4 min 5 s"), (120, "2 min")])
def test_durations_are_written_for_people(seconds, text):
    assert format_duration(seconds) == text
