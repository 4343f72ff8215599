"""Into how many batches to split a step, so that one computes here while another's experts compute elsewhere.

Two batches hide the time of a dispatch, and cost a second dispatch per layer and smaller products. Which weighs more
depends on the hop, on how the cores are shared and on the number of tokens: so both are measured, by size of step, and
the faster one is taken. The slower one is tried again from time to time.
"""

from __future__ import annotations

_CHOICES = (1, 2)
_TRY_EVERY = 64
"""Steps of a size after which the choice that lost is measured again."""
_FIRST_TRIES = 3
"""Steps of a size that each choice is measured before they are compared."""
_REMEMBER = 0.7
"""Share of a past estimate in the next one."""
_CLEAR_GAIN = 0.97
"""Two batches are chosen when they take less than this share of the time of one: noise must not flip the choice."""


class Overlap:
    """Chooses the number of batches by what steps of about as many tokens took."""

    def __init__(self) -> None:
        self._seconds_per_token: dict[tuple[int, int], float] = {}
        self._num_steps: dict[tuple[int, int], int] = {}

    def num_batches(self, num_tokens: int) -> int:
        """Return how many batches to split a step of so many tokens into."""
        if num_tokens < 2:
            return 1
        size = num_tokens.bit_length()
        for choice in _CHOICES:
            if self._num_steps.get((size, choice), 0) < _FIRST_TRIES:
                return choice
        one, two = (self._seconds_per_token[size, choice] for choice in _CHOICES)
        best = 2 if two < one * _CLEAR_GAIN else 1
        other = 3 - best
        num_best, num_other = self._num_steps[size, best], self._num_steps[size, other]
        return other if num_best >= _TRY_EVERY * (num_other - _FIRST_TRIES + 1) else best

    def observe(self, num_tokens: int, num_batches: int, seconds: float) -> None:
        """Learn from a step."""
        key = num_tokens.bit_length(), num_batches
        self._num_steps[key] = self._num_steps.get(key, 0) + 1
        old, new = self._seconds_per_token.get(key), seconds / num_tokens
        # The first steps of a size allocate and pack: the second one replaces what they took.
        self._seconds_per_token[key] = (
            new if old is None or self._num_steps[key] == 2 else _REMEMBER * old + (1 - _REMEMBER) * new
        )
