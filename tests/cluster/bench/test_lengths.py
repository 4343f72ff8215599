import numpy as np
import pytest

from cluster.bench.lengths import parse_lengths
from protos.errors import InvalidRequest


def draws(text: str, count: int = 2000) -> list[int]:
    rng = np.random.default_rng(0)
    lengths = parse_lengths(text, "--input")
    return [lengths.draw(rng) for _ in range(count)]


def test_a_number_is_every_length():
    assert set(draws("128", 10)) == {128}


def test_a_range_draws_every_length_in_it_and_no_other():
    assert set(draws("3-6")) == {3, 4, 5, 6}


def test_mean_and_deviation_draw_around_the_mean_and_never_below_one():
    found = draws("20:15")
    assert min(found) == 1
    assert max(found) <= 80
    assert np.mean(found) == pytest.approx(20, abs=1.5)
    assert np.std(found) == pytest.approx(14, abs=1.5)


def test_no_deviation_is_a_fixed_length():
    assert set(draws("5:0", 10)) == {5}


@pytest.mark.parametrize("text", ["128", "128:32", "64-256"])
def test_lengths_are_written_back_as_they_were_read(text):
    assert parse_lengths(text, "--input").text == text


@pytest.mark.parametrize("text", ["", "0", "0-4", "6-3", "a", "1-2-3", "0:3", "3:", "-5", "1.5", "4:-1", "9" * 30])
def test_what_is_no_length_is_refused(text):
    with pytest.raises(InvalidRequest, match="--input: expected tokens as 128, MEAN:STDEV"):
        parse_lengths(text, "--input")
