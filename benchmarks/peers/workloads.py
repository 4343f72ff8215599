"""What every engine is asked, and what is read off its answers."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

FIRST_ORDINARY_ID = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Some prompts of one length, all asked at once, and how many tokens to generate for each."""

    name: str
    prompts: int
    prompt_tokens: int
    max_tokens: int

    @property
    def is_prefill(self) -> bool:
        """Tell whether it measures how fast prompts are read: one token each is generated."""
        return self.max_tokens == 1

    def make_prompts(self, vocab_size: int, salt: str) -> list[list[int]]:
        """Return random prompts: equal for equal salts, without a common beginning that a cache could reuse."""
        source = random.Random(f"{self.name} {salt}")
        return [
            [source.randrange(FIRST_ORDINARY_ID, vocab_size) for _ in range(self.prompt_tokens)]
            for _ in range(self.prompts)
        ]


WORKLOADS = (
    Workload(name="decode-1", prompts=1, prompt_tokens=128, max_tokens=64),
    Workload(name="decode-8", prompts=8, prompt_tokens=128, max_tokens=64),
    Workload(name="decode-32", prompts=32, prompt_tokens=128, max_tokens=64),
    Workload(name="prompt-8x512", prompts=8, prompt_tokens=512, max_tokens=1),
)
LONG_WORKLOADS = tuple(
    Workload(name=f"prompt-1x{length}", prompts=1, prompt_tokens=length, max_tokens=1)
    for length in (8192, 32_768, 65_536)
)
QUICK_WORKLOADS = (
    Workload(name="decode-1", prompts=1, prompt_tokens=128, max_tokens=16),
    Workload(name="decode-8", prompts=8, prompt_tokens=128, max_tokens=16),
    Workload(name="decode-32", prompts=32, prompt_tokens=128, max_tokens=16),
    Workload(name="prompt-8x512", prompts=8, prompt_tokens=512, max_tokens=1),
)
WARM_UP = Workload(name="warm-up", prompts=8, prompt_tokens=128, max_tokens=4)
AGREEMENT = Workload(name="agreement", prompts=4, prompt_tokens=64, max_tokens=16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measure:
    """What one answer says about an engine."""

    rate: float
    """Tokens per second. Of a decode workload: generated tokens that came after the last sequence's first one, by the
    time from then to the last token. Of a prefill workload: prompt tokens by the time to the last first token."""
    total_rate: float
    """All generated tokens per second of the whole answer, prompts included in the time; for a prefill workload the
    same as `rate`."""
    first_token_s: float
    """When the first sequence's first token came."""
    last_first_token_s: float
    """When the last sequence's first token came."""
    seconds: float
    """When the last token came."""


def measure(workload: Workload, answer: dict[str, Any]) -> Measure:
    """Return what an answer says.

    Args:
        workload: what was asked.
        answer: a worker's, with the arrival of every token.
    """
    arrivals_s: list[list[float]] = answer["arrivals_s"]
    firsts = [times[0] for times in arrivals_s]
    start_s, end_s = max(firsts), max(times[-1] for times in arrivals_s)
    if workload.is_prefill:
        rate = total_rate = workload.prompts * workload.prompt_tokens / start_s
    else:
        num_after = sum(at_s > start_s for times in arrivals_s for at_s in times)
        rate = num_after / (end_s - start_s)
        total_rate = sum(map(len, arrivals_s)) / end_s
    return Measure(
        rate=rate,
        total_rate=total_rate,
        first_token_s=min(firsts),
        last_first_token_s=start_s,
        seconds=end_s,
    )


def count_agreeing(expected: list[list[int]], found: list[list[int]]) -> int:
    """Return how many tokens of all sequences are the same before the first that is not."""
    count = 0
    for wanted, given in zip(expected, found, strict=True):
        for ours, theirs in zip(wanted, given, strict=True):
            if ours != theirs:
                break
            count += 1
    return count
