"""Into how many batches to split a step, so that one computes here while another's experts compute elsewhere.

Two batches hide the time of a dispatch, and cost a second dispatch per layer and smaller products. Which weighs more
depends on the hop, on how the cores are shared and on the number of tokens: so both are measured, by size of step, and
the faster one is taken. The slower one is tried again from time to time.
"""

from __future__ import annotations

from collections import deque
from statistics import median

_CHOICES = (1, 2)
_TRY_EVERY = 64
"""Steps of a size after which the choice that lost is measured again."""
_FIRST_TRIES = 3
"""Steps of a size that each choice is measured before they are compared."""
_REMEMBER = 5
"""Last steps whose median stands for a choice: a step that waited for a replica, or allocated, says nothing."""
_CLEAR_GAIN = 0.97
"""Two batches are chosen when they take less than this share of the time of one: noise must not flip the choice."""


class Overlap:
    """Chooses the number of batches by what steps of about as many tokens took."""

    def __init__(self) -> None:
        self._choices: dict[int, dict[int, _Choice]] = {}

    def num_batches(self, num_tokens: int) -> int:
        """Return how many batches to split a step of so many tokens into."""
        if num_tokens < 2:
            return 1
        choices = self._of_size(num_tokens)
        for number, choice in choices.items():
            if len(choice.seconds_per_token) < _FIRST_TRIES:
                return number
        one, two = (choices[number].estimate for number in _CHOICES)
        best = 2 if _is_two_faster(one, two) else 1
        other = choices[3 - best]
        if other.steps_since >= _TRY_EVERY:
            return 3 - best
        # A try that went well is repeated at once: three of them turn the choice, or one shows it was chance.
        latest = other.seconds_per_token[-1]
        went_well = _is_two_faster(one, latest) if best == 1 else not _is_two_faster(latest, two)
        return 3 - best if other.steps_since == 0 and went_well else best

    def observe(self, num_tokens: int, num_batches: int, seconds: float) -> None:
        """Learn from a step."""
        if num_tokens < 2:
            return
        for number, choice in self._of_size(num_tokens).items():
            choice.steps_since += 1
            if number == num_batches:
                choice.seconds_per_token.append(seconds / num_tokens)
                choice.steps_since = 0

    def _of_size(self, num_tokens: int) -> dict[int, _Choice]:
        return self._choices.setdefault(num_tokens.bit_length(), {number: _Choice() for number in _CHOICES})


class _Choice:
    """What steps of one size took in one number of batches."""

    __slots__ = ("seconds_per_token", "steps_since")

    def __init__(self) -> None:
        self.seconds_per_token: deque[float] = deque(maxlen=_REMEMBER)
        self.steps_since = 0
        """Steps of the size since this was measured."""

    @property
    def estimate(self) -> float:
        return median(self.seconds_per_token)


def _is_two_faster(one: float, two: float) -> bool:
    return two < one * _CLEAR_GAIN
