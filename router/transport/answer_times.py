"""How long replicas take to answer, learned: from when on an answer is late enough to ask somebody else, too.

After Dean and Barroso, "The Tail at Scale" (CACM 2013): what is asked twice only past a high percentile costs little
and cuts off the tail. Dispatches are compared with others of about as many tokens, over all replicas: one that is slow
by itself must not set its own measure.
"""

from __future__ import annotations

from collections import deque

FIRST_HEDGE_S = 1.0
"""Seconds after which an answer is late while too few are known: a first dispatch may load code, or page weights in."""
_LEAST_HEDGE_S = 0.01
"""An answer is never late before: what is gained by asking twice would be less than a scheduler's hiccup."""
_KNOWN = 32
"""Answers of a size that say what is usual."""
_REMEMBER = 256
_PERCENTILE = 0.99
_PAST_PERCENTILE = 1.5
_PAST_MEDIAN = 4.0
"""An answer is late after so many times the percentile and the median: one in a thousand, not in a hundred."""
_LEARN_EVERY = 16


class AnswerTimes:
    """Learns from answers, by size of dispatch. Belongs to one thread."""

    def __init__(self) -> None:
        self._sizes: dict[int, _Size] = {}

    def observe(self, num_tokens: int, seconds: float) -> None:
        """Take note of how long it took until a dispatch of so many tokens was answered, by whomever."""
        size = self._sizes.get(num_tokens.bit_length())
        if size is None:
            size = self._sizes[num_tokens.bit_length()] = _Size()
        size.seconds.append(seconds)
        size.num_new += 1
        if size.num_new >= _LEARN_EVERY:
            size.learn()

    def hedge_after_s(self, num_tokens: int) -> float:
        """Return the seconds after which an answer to so many tokens is late."""
        size = self._sizes.get(num_tokens.bit_length())
        return FIRST_HEDGE_S if size is None else size.hedge_after_s


class _Size:
    """The answers to dispatches of one size."""

    __slots__ = ("hedge_after_s", "num_new", "seconds")

    def __init__(self) -> None:
        self.seconds: deque[float] = deque(maxlen=_REMEMBER)
        self.num_new = 0
        self.hedge_after_s = FIRST_HEDGE_S

    def learn(self) -> None:
        self.num_new = 0
        if len(self.seconds) < _KNOWN:
            return
        ordered = sorted(self.seconds)
        percentile = ordered[int(len(ordered) * _PERCENTILE)]
        median = ordered[len(ordered) // 2]
        self.hedge_after_s = max(percentile * _PAST_PERCENTILE, median * _PAST_MEDIAN, _LEAST_HEDGE_S)


class HedgeBudget:
    """How many dispatches may be asked twice: few, for when everybody is slow, asking twice makes it worse."""

    _EARNED = 0.05
    """Hedges each dispatch earns."""
    _MOST = 16.0

    def __init__(self) -> None:
        self._saved = self._MOST

    def earn(self) -> None:
        """Take note of a dispatch."""
        self._saved = min(self._saved + self._EARNED, self._MOST)

    @property
    def can_spend(self) -> bool:
        """Tell whether one more may be asked twice."""
        return self._saved >= 1

    def spend(self) -> None:
        """Take note of a dispatch that was asked twice."""
        self._saved -= 1
