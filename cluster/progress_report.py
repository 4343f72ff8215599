"""What a client is told while it waits for its first token, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

from cluster.choice import Choice
from cluster.class_queue import Turn
from cluster.service_events import Progress
from router.request import GenerationRequest

PERIOD_S = 1.0
"""Seconds from a request's arrival to the first report, and between two."""


class ProgressReport:
    """One request's reports. Belongs to one event loop.

    Args:
        choices: of the request.
        generations: their sequences, in the same order.
        turns: their places in line, likewise; empty: they wait in none.
        period_s: seconds between two reports.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        generations: Sequence[GenerationRequest],
        turns: Sequence[Turn],
        period_s: float = PERIOD_S,
    ) -> None:
        self._choices = choices
        self._totals = [len(each.prompt_ids) for each in generations]
        self._turns = turns
        self._period_s = period_s
        self._now_s = asyncio.get_running_loop().time
        self._due_s = self._now_s() + period_s
        self._over = asyncio.Event()

    def end(self) -> None:
        """Report no more: the first token is there."""
        self._over.set()

    async def ticks(self) -> AsyncGenerator[None, None]:
        """Yield when it is time to look, until the reports end: those in line bring nothing by themselves."""
        while not self._over.is_set():
            try:
                async with asyncio.timeout(self._period_s):
                    await self._over.wait()
            except TimeoutError:
                yield

    def next(self) -> Progress | None:
        """Return a report if one is due and there is something to tell."""
        if self._over.is_set() or self._now_s() < self._due_s:
            return None
        waiting = max((each for each in self._turns if each.position), key=lambda each: each.position, default=None)
        if waiting is None and not any(choice.num_prompt_done for choice in self._choices):
            return None  # it has room, and no prompt of it takes many steps
        num_done = sum(self._num_done(*each) for each in zip(self._choices, self._totals, strict=True))
        self._due_s = self._now_s() + self._period_s
        return Progress(
            queue_position=waiting.position if waiting else 0,
            expected_start_s=waiting.expected_start_s if waiting else None,
            num_prompt_done=num_done,
            num_prompt_tokens=sum(self._totals),
        )

    @staticmethod
    def _num_done(choice: Choice, total: int) -> int:
        return total if choice.prompt_is_done else choice.num_prompt_done
