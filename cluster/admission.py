"""Counting admission: how many sequences and waiting prompt tokens one front door takes before it says no."""

from __future__ import annotations

import time
from types import TracebackType

from cluster.limits import FrontDoorLimits
from protos.errors import Overloaded

RETRY_AFTER_MS = 1000
"""What a refused caller is told to wait. A guess: how fast room appears is not known here."""


class Admission:
    """Counts what is in flight. Not thread-safe: it belongs to one event loop.

    Args:
        limits: how much is too much.
    """

    def __init__(self, limits: FrontDoorLimits) -> None:
        self._limits = limits
        self.num_sequences = 0
        self.num_queued_prompt_tokens = 0
        self._idle_since = time.monotonic()

    @property
    def idle_s(self) -> float:
        """Return the seconds since there was a sequence, or since the start; 0 while there is one."""
        return 0.0 if self.num_sequences else time.monotonic() - self._idle_since

    def leave(self, num_sequences: int) -> None:
        """Take note of sequences that have ended."""
        self.num_sequences -= num_sequences
        self._idle_since = time.monotonic()

    def admit(self, num_sequences: int, num_prompt_tokens: int) -> Ticket:
        """Take a request in; leave the returned context to give its room back.

        Args:
            num_sequences: sequences the request will run.
            num_prompt_tokens: prompt tokens the routers must compute for it.

        Raises:
            Overloaded: there is no room now.
        """
        # A request larger than a limit is let in when nothing else is there: otherwise it could never run.
        sequences = self.num_sequences + num_sequences
        if self.num_sequences and sequences > self._limits.max_sequences:
            raise Overloaded(
                f"expected at most {self._limits.max_sequences} sequences in flight at this front door, found "
                f"{self.num_sequences} and {num_sequences} more asked for; retry in {RETRY_AFTER_MS} ms",
                retry_after_ms=RETRY_AFTER_MS,
            )
        tokens = self.num_queued_prompt_tokens + num_prompt_tokens
        if self.num_queued_prompt_tokens and tokens > self._limits.max_queued_prompt_tokens:
            raise Overloaded(
                f"expected at most {self._limits.max_queued_prompt_tokens} prompt tokens waiting at this front door, "
                f"found {self.num_queued_prompt_tokens} and {num_prompt_tokens} more asked for; "
                f"retry in {RETRY_AFTER_MS} ms",
                retry_after_ms=RETRY_AFTER_MS,
            )
        return Ticket(self, num_sequences, num_prompt_tokens)


class Ticket:
    """Room held by one request, from entering the context to leaving it."""

    def __init__(self, admission: Admission, num_sequences: int, num_prompt_tokens: int) -> None:
        self._admission = admission
        self._num_sequences = num_sequences
        self._num_prompt_tokens = num_prompt_tokens

    def prompt_computed(self, num_tokens: int) -> None:
        """Give back the room of prompt tokens that no longer wait."""
        self._num_prompt_tokens -= num_tokens
        self._admission.num_queued_prompt_tokens -= num_tokens

    def __enter__(self) -> Ticket:
        self._admission.num_sequences += self._num_sequences
        self._admission.num_queued_prompt_tokens += self._num_prompt_tokens
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._admission.leave(self._num_sequences)
        self._admission.num_queued_prompt_tokens -= self._num_prompt_tokens
