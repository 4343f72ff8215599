"""Which sequences hold a slot, and which of their tokens the next step computes. Pure bookkeeping: no tensors."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from router.sequence import Sequence


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineLimits:
    """What an engine takes on."""

    context_length: int
    """Most tokens of prompt and output together, per sequence."""
    kv_bytes: int
    """Bytes of key/value cache all sequences share."""
    slots: int = 16
    """Most sequences that generate at once."""
    max_waiting: int = 256
    """Most sequences accepted beyond that; more are refused with Overloaded."""
    step_tokens: int = 512
    """Most tokens computed in one step: bounds how long one prompt delays the others' next token."""


@dataclass(frozen=True, slots=True)
class Work:
    """The next tokens of one sequence to compute."""

    sequence: Sequence
    num_tokens: int


class Scheduler:
    """First come, first served: slots and cache are reserved for a sequence's whole length before it starts.

    So a sequence that runs never runs out, and none waits for one that waits.
    """

    def __init__(self, limits: EngineLimits) -> None:
        self._limits = limits
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []
        self.reserved_bytes = 0

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Return the sequences that hold a slot, oldest first."""
        return tuple(self._running)

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        """Return the sequences without a slot, in the order they will get one."""
        return tuple(self._waiting)

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        self._waiting.append(sequence)

    def admit(self) -> None:
        """Give waiting sequences the slots and the cache that are free."""
        while self._waiting and len(self._running) < self._limits.slots:
            if self.reserved_bytes + self._waiting[0].reserved_bytes > self._limits.kv_bytes:
                return
            sequence = self._waiting.popleft()
            self._running.append(sequence)
            self.reserved_bytes += sequence.reserved_bytes

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence, wherever it is, and free what was reserved for it."""
        if sequence in self._running:
            self._running.remove(sequence)
            self.reserved_bytes -= sequence.reserved_bytes
        else:
            self._waiting.remove(sequence)

    def next_step(self) -> list[Work]:
        """Return the step's work: one token of every sequence that generates, then prompts, oldest first."""
        budget = self._limits.step_tokens
        work = [Work(sequence, 1) for sequence in self._running if not sequence.is_prefilling]
        budget -= len(work)
        for sequence in self._running:
            if sequence.is_prefilling and budget > 0:
                num_tokens = min(sequence.num_uncomputed, budget)
                work.append(Work(sequence, num_tokens))
                budget -= num_tokens
        return work
