import pytest

from cluster.expected_start import RunningSequence, expected_start_s


def running(num_prompt_tokens: int, num_done: int, elapsed_s: float) -> RunningSequence:
    return RunningSequence(num_prompt_tokens=num_prompt_tokens, num_done=num_done, elapsed_s=elapsed_s)


@pytest.mark.parametrize(
    ("sequences", "ahead", "seconds_per_token", "expected"),
    [
        # Nothing is known of anybody.
        ([], [], None, None),
        ([], [], 0.1, None),
        ([running(100, 0, 3.0)], [], None, None),
        # One ended in 0.1 s per token; the one that runs has 3 s of 10 behind it.
        ([running(100, 0, 3.0)], [], 0.1, 7.0),
        # It is slower than those before: the rest of its prompt alone takes 9 s.
        ([running(100, 25, 3.0)], [], 0.1, 9.0),
        # It should be over by now: at once.
        ([running(100, 100, 12.0)], [], 0.1, 0.0),
        # None has ended: the speed of those that run.
        ([running(100, 25, 3.0)], [], None, 9.0),
        ([running(100, 0, 1.0), running(100, 50, 5.0)], [], None, 5.0),
        # Room is free when the first of them ends, and those ahead take it first.
        ([running(100, 0, 0.0), running(40, 0, 0.0)], [], 0.1, 4.0),
        ([running(100, 0, 0.0), running(40, 0, 0.0)], [10], 0.1, 5.0),
        ([running(100, 0, 0.0), running(40, 0, 0.0)], [10, 90], 0.1, 10.0),
        ([running(100, 0, 0.0), running(40, 0, 0.0)], [10, 90, 20], 0.1, 12.0),
    ],
)
def test_room_comes_when_those_before_have_had_theirs(sequences, ahead, seconds_per_token, expected):
    found = expected_start_s(sequences, ahead, seconds_per_token)
    assert found == (None if expected is None else pytest.approx(expected))
