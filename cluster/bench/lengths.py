"""How long prompts and answers are, in tokens."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import numpy as np

from protos.errors import InvalidRequest

MAX_TOKENS = 100_000_000
"""Longer lengths are taken for a slip of the finger."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lengths:
    """A distribution of lengths: normal around `mean`, or uniform where `stdev` is None; never outside the bounds."""

    low: int
    """Shortest length, in tokens; at least 1."""
    high: int
    """Longest length, in tokens, itself included."""
    mean: float
    """Mean of the normal distribution, in tokens, before it is cut to the bounds."""
    stdev: float | None = None
    """Its standard deviation, in tokens; None: every length from low to high is as likely as any other."""

    def draw(self, rng: np.random.Generator) -> int:
        """Return one length; consumes one number of `rng`."""
        if self.stdev is None:
            return int(rng.integers(self.low, self.high, endpoint=True))
        return int(min(max(round(rng.normal(self.mean, self.stdev)), self.low), self.high))

    @property
    def text(self) -> str:
        """As it is written on the command line."""
        if self.stdev is not None:
            return f"{self.mean:g}:{self.stdev:g}"
        return str(self.low) if self.low == self.high else f"{self.low}-{self.high}"


def parse_lengths(text: str, name: str) -> Lengths:
    """Return what "128" (fixed), "128:32" (mean and standard deviation) or "64-256" (uniform) says.

    Args:
        text: what was written.
        name: of the option, for the error.

    Raises:
        InvalidRequest: it is none of these, or there are lengths below 1.
    """
    numbers = [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]
    if any(number > MAX_TOKENS for number in numbers):
        raise _malformed(text, name)
    if re.fullmatch(r"\d+(?:\.\d+)?:\d+(?:\.\d+)?", text):
        mean, stdev = numbers
        if mean < 1:
            raise _malformed(text, name)
        # Four deviations cut one draw in 30,000 at the upper end.
        return Lengths(low=1, high=math.ceil(mean + 4 * stdev), mean=mean, stdev=stdev)
    if not re.fullmatch(r"\d+(-\d+)?", text) or not 1 <= numbers[0] <= numbers[-1]:
        raise _malformed(text, name)
    return Lengths(low=int(numbers[0]), high=int(numbers[-1]), mean=(numbers[0] + numbers[-1]) / 2)


def _malformed(text: str, name: str) -> InvalidRequest:
    return InvalidRequest(
        f"{name}: expected tokens as 128, MEAN:STDEV as 128:32 or LOW-HIGH as 64-256, from 1 up, found {text!r}: "
        "correct it"
    )
