"""How many prompt tokens a step may take beside the tokens of sequences that generate, learnt from measured steps."""

from __future__ import annotations

_FIRST_TOKENS = 64
_REMEMBER = 0.7
"""Share of a past estimate in the next one."""
_STALE_STEPS = 64
"""Steps with prompts after which one without is run, to measure again what such a step takes."""
_LARGEST_CHANGE = 2.0


class StepBudget:
    """Keeps steps that mix prompts with generating sequences within `stretch` times the duration of those that don't.

    The duration of a mixed step depends on too much to be computed: how many experts a handful of tokens reaches, how
    long the contexts are, who else uses the machine. So the number of prompt tokens is steered by what the last mixed
    step took: it is multiplied by (allowed extra time / extra time found), within bounds.

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
        self._plain_s: dict[int, float] = {}
        self._mixed_steps = 0
        self._prompt_tokens_per_s = 0.0

    @property
    def prompt_tokens_per_s(self) -> float:
        """Return how fast prompts are computed when nobody generates; 0 until measured."""
        return self._prompt_tokens_per_s

    def prompt_tokens(self, num_generating: int) -> int:
        """Return the most prompt tokens of the next step, beside one token of so many sequences."""
        room = self._step_tokens - num_generating
        if not num_generating:
            return room
        if self._mixed_steps >= _STALE_STEPS or self._plain_estimate(num_generating) is None:
            return 0
        return min(max(int(self._tokens), self._least_tokens), room)

    def observe(self, *, num_generating: int, num_prompt: int, seconds: float) -> None:
        """Learn from a step: tokens of each kind it computed, and how long it took."""
        if not num_prompt:
            bucket = num_generating.bit_length()
            self._plain_s[bucket] = _blend(self._plain_s.get(bucket), seconds)
            self._mixed_steps = 0
        elif not num_generating:
            self._prompt_tokens_per_s = _blend(self._prompt_tokens_per_s or None, num_prompt / seconds)
        else:
            self._mixed_steps += 1
            self._steer(num_generating, num_prompt, seconds)

    def _steer(self, num_generating: int, num_prompt: int, seconds: float) -> None:
        plain_s = self._plain_estimate(num_generating)
        if plain_s is None:
            return
        allowed_s, found_s = plain_s * (self._stretch - 1), max(seconds - plain_s, plain_s * 0.01)
        change = min(max(allowed_s / found_s, 1 / _LARGEST_CHANGE), _LARGEST_CHANGE)
        # A step that took fewer tokens than it might tells what those took, and no more.
        wanted = min(num_prompt, self._tokens) * change
        if wanted < self._tokens or num_prompt >= int(self._tokens):
            self._tokens = min(max(wanted, self._least_tokens), self._step_tokens)

    def _plain_estimate(self, num_generating: int) -> float | None:
        """Return what a step without prompts takes: as measured with about as many sequences."""
        if not self._plain_s:
            return None
        bucket = num_generating.bit_length()
        return self._plain_s[min(self._plain_s, key=lambda known: abs(known - bucket))]


def _blend(old: float | None, new: float) -> float:
    return new if old is None else _REMEMBER * old + (1 - _REMEMBER) * new
