"""A process that ends itself once nobody knows it any more."""

from __future__ import annotations

import pytest

# Importing Ray warns of its own use of pydantic.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("answers", "num_looks"),
    [
        ([True, True, False, False, True], 4),
        ([True, False, True, False, False, True], 5),
        ([True, False, TimeoutError(), False, True], 4),
        ([False, False, False, True, False, False], 6),
    ],
)
def test_one_that_was_known_ends_at_the_second_look_that_finds_it_unknown(answers, num_looks):
    from cluster.given_up import watch_until_unknown

    left = list(answers)
    ends = []

    def is_known() -> bool:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    watch_until_unknown(lambda: True, is_known, lambda: ends.append(len(answers) - len(left)))
    assert ends == [num_looks]


def test_it_is_looked_for_at_first_and_after_it_stood_still_only():
    from cluster.given_up import watch_until_unknown

    num_pauses, looks = 0, []

    def pause() -> bool:
        nonlocal num_pauses
        num_pauses += 1
        return num_pauses == 100

    def is_known() -> bool:
        looks.append(num_pauses)
        return num_pauses < 101

    watch_until_unknown(pause, is_known, lambda: None)
    assert looks == [1, 100, 101, 102]
