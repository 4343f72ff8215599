"""When a sequence that waits will get room, from what was measured of those before it. Pure arithmetic."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class RunningSequence:
    """A sequence that has room."""

    num_prompt_tokens: int
    """Tokens of its prompt."""
    num_done: int
    """Those of them that are computed."""
    elapsed_s: float
    """Seconds since it got room."""

    @property
    def least_s(self) -> float | None:
        """Return the seconds that the rest of its prompt takes at the speed it had so far; None: not known yet."""
        if not self.num_done:
            return None
        return (self.num_prompt_tokens - self.num_done) * self.elapsed_s / self.num_done


def expected_start_s(
    running: Sequence[RunningSequence], ahead: Sequence[int], seconds_per_token: float | None
) -> float | None:
    """Return the seconds until the next in line after those ahead gets room; None: nothing was measured yet.

    A sequence takes as long per token of its prompt as those that ended did, its answer included, but never less than
    what the rest of its prompt takes at its own speed. Those ahead take the room that becomes free first.

    Args:
        running: all that have room.
        ahead: prompt tokens of each that waits and is served before, in order.
        seconds_per_token: from getting room to the end, per prompt token; None: none has ended yet.
    """
    if seconds_per_token is None:
        known = [each.elapsed_s / each.num_done for each in running if each.num_done]
        if not known:
            return None
        seconds_per_token = sum(known) / len(known)
    free_at = [
        max(each.num_prompt_tokens * seconds_per_token - each.elapsed_s, each.least_s or 0.0, 0.0) for each in running
    ]
    if not free_at:
        return None
    heapq.heapify(free_at)
    for num_tokens in ahead:
        heapq.heapreplace(free_at, free_at[0] + num_tokens * seconds_per_token)
    return free_at[0]
