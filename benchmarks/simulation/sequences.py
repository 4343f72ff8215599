"""Sequences as a fluid: cohorts of equal requests that wait for their prompt to be computed, then generate.

    arrive --> waiting --prompt computed--> generating --last token--> finished
                  ^------------ replay ---------'  `-- lose --> lost

Every request is counted in exactly one of them at any time; `check` says so.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

_ROUNDING = 1e-9
"""Requests, places and tokens that are what rounding left of them. A few tokens in 10^-322 would never be used up: what
part of a request they compute rounds to none."""


@dataclass(slots=True)
class Cohort:
    """Requests that came together and stay together."""

    count: float
    """Requests; not whole, since parts of a cohort may go on earlier."""
    arrived_s: float
    context: float
    """Tokens whose keys and values each has, or has to compute."""
    remaining: float
    """Tokens each has yet to generate."""
    output: float
    """Tokens each generates in all."""
    started_s: float = -1.0
    """When the first token came; negative: not yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """A cohort, or a part of one, whose prompt was computed in a step."""

    cohort: Cohort
    wait_s: float
    """From arrival to the middle of the computing, mean."""
    is_first: bool
    """Whether its first token follows; False for those that were replayed."""


@dataclass(slots=True)
class Sequences:
    """All sequences of a fleet."""

    waiting: deque[Cohort] = field(default_factory=deque)
    generating: deque[Cohort] = field(default_factory=deque)
    arrived: float = 0.0
    finished: float = 0.0
    lost: float = 0.0
    replayed: float = 0.0
    num_waiting: float = 0.0
    """Those whose prompt is not computed."""
    waiting_tokens: float = 0.0
    """Prompt tokens not computed. Both are kept as sums: there may be thousands of cohorts that wait."""

    @property
    def num_generating(self) -> float:
        """Count those that generate."""
        return sum(cohort.count for cohort in self.generating)

    @property
    def context(self) -> float:
        """Return the mean context of those that generate; 0: none."""
        count = self.num_generating
        return sum(cohort.count * cohort.context for cohort in self.generating) / count if count else 0.0

    def arrive(self, count: float, now: float, prompt: float, output: float) -> None:
        """Take requests in."""
        if count:
            self.arrived += count
            self._wait(Cohort(count, now, prompt, output, output))

    def _wait(self, cohort: Cohort, *, is_first: bool = False) -> None:
        """Let a cohort wait, behind all others or before them."""
        self.num_waiting += cohort.count
        self.waiting_tokens += cohort.count * cohort.context
        if is_first:
            self.waiting.appendleft(cohort)
        else:
            self.waiting.append(cohort)

    def prefill(self, tokens: float, room: float, now: float, step_s: float) -> list[Served]:
        """Compute prompts in the order they came.

        Args:
            tokens: prompt tokens there is time for.
            room: sequences there is room for.
            now: beginning of the step.
            step_s: how long it is.
        """
        served: list[Served] = []
        budget = tokens
        while self.waiting and budget > _ROUNDING and room > _ROUNDING:
            head = self.waiting[0]
            count = min(head.count, budget / head.context, room)
            # Those that came in this very step wait for nobody in a fluid; the caller adds what chance does.
            middle_s = now + step_s * (1 - (budget - count * head.context / 2) / tokens)
            wait_s = 0.0 if head.arrived_s >= now else middle_s - head.arrived_s
            part = replace(head, count=count)
            served.append(Served(cohort=part, wait_s=wait_s, is_first=part.started_s < 0))
            budget -= count * head.context
            room -= count
            head.count -= count
            if head.count <= _ROUNDING:
                self.waiting.popleft()
                part.count += head.count
            if part.started_s < 0:
                part.started_s = part.arrived_s + wait_s
            self.num_waiting -= part.count
            self.waiting_tokens -= part.count * part.context
            self.generating.append(part)
        if not self.waiting:  # what rounding left
            self.num_waiting = self.waiting_tokens = 0.0
        return served

    def generate(self, tokens_each: float, now: float, step_s: float) -> list[tuple[Cohort, float]]:
        """Give each sequence tokens; return cohorts that finished, and their mean seconds per token."""
        done: list[tuple[Cohort, float]] = []
        left: deque[Cohort] = deque()
        for cohort in self.generating:
            if cohort.remaining > tokens_each:
                cohort.remaining -= tokens_each
                cohort.context += tokens_each
                left.append(cohort)
                continue
            ended_s = now + step_s * (cohort.remaining / tokens_each if tokens_each else 1.0)
            self.finished += cohort.count
            done.append((cohort, max(ended_s - cohort.started_s, 0.0) / cohort.output))
        self.generating = left
        return done

    def replay(self, count: float) -> None:
        """Let sequences begin again elsewhere, with what they have said as part of the prompt.

        Args:
            count: those that generate on what died. Where answers are shorter than a step, cohorts hold fewer: the
                rest would come and go within this step, and waits at its beginning anyway.
        """
        part = min(count / self.num_generating, 1.0) if self.num_generating else 0.0
        for cohort in self.generating:
            moved = cohort.count * part
            cohort.count -= moved
            if moved:
                self._wait(replace(cohort, count=moved), is_first=True)
        self.replayed += min(count, self.num_generating + self.num_waiting)

    def lose(self, count: float) -> None:
        """Let sequences end without an answer; see `replay`."""
        part = min(count / self.num_generating, 1.0) if self.num_generating else 0.0
        left = count
        for cohort in self.generating:
            left -= cohort.count * part
            self.lost += cohort.count * part
            cohort.count *= 1 - part
        while left > 0 and self.waiting:
            head = self.waiting[0]
            gone = min(left, head.count)
            head.count -= gone
            left -= gone
            self.lost += gone
            self.num_waiting -= gone
            self.waiting_tokens -= gone * head.context
            if head.count <= 0:
                self.waiting.popleft()

    def check(self) -> None:
        """Check that every request is somewhere, once."""
        found = sum(cohort.count for cohort in self.waiting) + self.num_generating + self.finished + self.lost
        assert abs(found - self.arrived) <= 1e-6 * max(self.arrived, 1), (found, self.arrived)
