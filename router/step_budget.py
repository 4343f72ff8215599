"""How many prompt tokens a step may take beside the tokens of sequences that generate, learnt from measured steps."""

from __future__ import annotations

from collections import deque
from statistics import median

_FIRST_TOKENS = 64
_REMEMBER = 0.7
"""Share of a past estimate in the next one."""
_PLAIN_STEPS = 5
"""Last steps without prompts whose median stands for all: one that waited for a replica must not stretch the rest."""
_STALE_STEPS = 64
"""Steps with prompts after which one without is run, to measure again what such a step takes."""
_LARGEST_CHANGE = 2.0
_BURST = 32
"""How much a prompt in a burst counts against a sequence that generates. With 1, 32 prompts of 128 tokens that came at
once were read 16 tokens at a time, in steps twice as long as those without; with 8 their whole answers came at 270
tokens/s, with 32 at 316."""


class StepBudget:
    """Keeps steps that mix prompts with generating sequences within `stretch` times the duration of those that don't.

    The duration of a mixed step depends on too much to be computed: how many experts a handful of tokens reaches, how
    long the contexts are, who else uses the machine. So the number of prompt tokens is steered by what the last mixed
    step took: it is multiplied by (allowed extra time / extra time found), within bounds.

    Where several prompts wait, the extra time is longer, by `_BURST` times their number per sequence that generates: a
    few tokens of a prompt reach nearly every expert and so cost as much as a hundred. One long prompt may be read that
    slowly for its neighbours' sake; a burst of them would crawl behind the first one that generates.

    Args:
        step_tokens: most tokens of any step.
        stretch: allowed duration of a mixed step, in durations of one without prompts; at least 1.
        least_tokens: prompt tokens that a step takes in any case, so that prompts get on.
    """

    def __init__(self, *, step_tokens: int, stretch: float, least_tokens: int) -> None:
        self._step_tokens = step_tokens
        self._stretch = stretch
        self._least_tokens = min(least_tokens, step_tokens)
        self._tokens = float(min(_FIRST_TOKENS, step_tokens))
        self._plain: dict[int, _Plain] = {}
        self._prompt_tokens_per_s = 0.0

    @property
    def prompt_tokens_per_s(self) -> float:
        """Return how fast prompts are computed when nobody generates; 0 until measured."""
        return self._prompt_tokens_per_s

    def prompt_tokens(self, num_generating: int, num_prompts: int) -> int:
        """Return the most prompt tokens of the next step, all prompts together.

        Args:
            num_generating: sequences that get a token each in this step.
            num_prompts: sequences whose prompt is not computed yet.
        """
        room = self._step_tokens - num_generating
        if not num_generating:
            return room
        if self._plain_of(num_generating).is_stale:
            return 0
        return min(max(int(self._tokens * _weight(num_generating, num_prompts)), self._least_tokens), room)

    def observe(self, *, num_generating: int, num_prompts: int, num_prompt: int, seconds: float) -> None:
        """Learn from a step.

        Args:
            num_generating: as the budget was asked with.
            num_prompts: as the budget was asked with.
            num_prompt: tokens of prompts it computed.
            seconds: how long it took.
        """
        if not num_generating:
            if num_prompt >= _FIRST_TOKENS or not self._prompt_tokens_per_s:  # a few tokens tell little of many
                self._prompt_tokens_per_s = _blend(self._prompt_tokens_per_s, num_prompt / seconds)
        elif num_prompt:
            weight = _weight(num_generating, num_prompts)
            self._steer(num_generating, num_prompt, seconds, weight)
        else:
            plain = self._plain_of(num_generating)
            plain.seconds.append(seconds)
            plain.mixed_steps = 0

    def _steer(self, num_generating: int, num_prompt: int, seconds: float, weight: float) -> None:
        plain = self._plain_of(num_generating)
        plain.mixed_steps += 1
        if not plain.seconds:
            return
        plain_s = median(plain.seconds)
        allowed_s, found_s = plain_s * (self._stretch - 1) * weight, max(seconds - plain_s, plain_s * 0.01)
        change = min(allowed_s / found_s, _LARGEST_CHANGE)
        # A step that took fewer tokens than it might tells what those took, and no more.
        if change < 1 or num_prompt >= min(int(self._tokens * weight), self._step_tokens - num_generating):
            wanted = max(min(num_prompt / weight, self._tokens) * change, self._tokens / _LARGEST_CHANGE)
            self._tokens = min(max(wanted, self._least_tokens), self._step_tokens)

    def _plain_of(self, num_generating: int) -> _Plain:
        """Return what is known of steps without prompts, with about as many sequences."""
        return self._plain.setdefault(num_generating.bit_length(), _Plain())


class _Plain:
    """What steps without prompts took, for one size of step."""

    __slots__ = ("mixed_steps", "seconds")

    def __init__(self) -> None:
        self.seconds: deque[float] = deque(maxlen=_PLAIN_STEPS)
        self.mixed_steps = 0
        """Steps with prompts since the last one without."""

    @property
    def is_stale(self) -> bool:
        return not self.seconds or self.mixed_steps >= _STALE_STEPS


def _weight(num_generating: int, num_prompts: int) -> float:
    return max(_BURST * num_prompts / num_generating, 1.0) if num_prompts > 1 else 1.0


def _blend(old: float, new: float) -> float:
    return _REMEMBER * old + (1 - _REMEMBER) * new if old else new
