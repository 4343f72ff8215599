"""What a request may ask of sampling. Imports no torch: the front door checks with it as well as the router."""

from __future__ import annotations

import math
import reprlib
from dataclasses import dataclass

from protos.errors import InvalidRequest
from router.request import SamplingParams
from router.seed import NUM_SEEDS


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a field of SamplingParams may be."""

    field: str
    """Its name."""
    interval: str
    """From where to where, as mathematicians write it."""
    low: float
    """Least value."""
    high: float
    """Largest value, allowed; infinite: there is none."""
    advice: str
    """What to do about another value."""
    low_is_allowed: bool = True
    """Whether the least value itself is in it."""
    is_whole: bool = False
    """Whether it takes a whole number."""

    def allow(self, value: object) -> bool:
        """Tell whether the field may have this value. NaN fails every comparison."""
        if isinstance(value, bool) or not isinstance(value, int if self.is_whole else (int, float)):
            return False
        return self.low <= value <= self.high and (self.low_is_allowed or value != self.low)


SAMPLING_BOUNDS = (
    Bounds("temperature", "[0, 100]", 0, 100, "use 0 for the likeliest token, 1 for the model's own probabilities"),
    Bounds("top_k", "[0, inf)", 0, math.inf, "use 0 to keep all tokens", is_whole=True),
    Bounds("top_p", "(0, 1]", 0, 1, "use 1 to keep all tokens", low_is_allowed=False),
    Bounds("min_p", "[0, 1]", 0, 1, "use 0 to keep all tokens"),
    Bounds("repetition_penalty", "(0, 100]", 0, 100, "use 1 for no penalty", low_is_allowed=False),
    Bounds("presence_penalty", "[-2, 2]", -2, 2, "use 0 for no penalty"),
    Bounds("frequency_penalty", "[-2, 2]", -2, 2, "use 0 for no penalty"),
    Bounds("seed", "[0, 2**64)", 0, NUM_SEEDS - 1, "use any number in that range, or leave it out", is_whole=True),
)
"""Of every field."""


def check_sampling(params: SamplingParams) -> None:
    """Refuse parameters no token can be chosen by.

    Raises:
        InvalidRequest: a field is of the wrong type, not a number, or out of range; all such fields are named.
    """
    wrong = [
        f"{bounds.field}: expected {'a whole number' if bounds.is_whole else 'a number'} in {bounds.interval}, "
        f"found {reprlib.repr(getattr(params, bounds.field))}; {bounds.advice}"
        for bounds in SAMPLING_BOUNDS
        if not bounds.allow(getattr(params, bounds.field))
    ]
    if wrong:
        raise InvalidRequest(". ".join(wrong))
