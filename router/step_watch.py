"""Tells an engine that is stuck from one that computes for long, waits for experts or has nothing to do.

A kernel that never returns blocks the engine's thread only: its process goes on answering, and would be taken for well.
"""

from __future__ import annotations

from typing import Protocol

from protos.errors import ReplicaUnavailable

_LONGEST_LOOK_S = 2.0
"""A pause between two looks counts as no more than this: a process that was stopped for an hour is not stuck."""


class Watched(Protocol):
    """What is watched: an Engine."""

    @property
    def is_alive(self) -> bool:
        """Tell whether its step loop runs."""

    @property
    def is_working(self) -> bool:
        """Tell whether it has taken up work that is not done."""

    @property
    def num_signs(self) -> int:
        """Return a number that changes with every sign of life."""


class StepWatch:
    """Adds up how long a working engine has given no sign of life. Belongs to one thread, and must look often.

    Args:
        engine: to watch; started.
        stuck_after_s: seconds without a sign after which it is taken for stuck.
    """

    def __init__(self, engine: Watched, stuck_after_s: float) -> None:
        self._engine = engine
        self._stuck_after_s = stuck_after_s
        self._num_signs = engine.num_signs
        self._still_s = 0.0
        self._looked_at: float | None = None

    def check(self, now: float) -> None:
        """Look at the engine; `now` is a monotonic second.

        Raises:
            ReplicaUnavailable: it is stuck, or has ended.
        """
        engine, looked_at = self._engine, self._looked_at
        self._looked_at = now
        num_signs = engine.num_signs
        if num_signs != self._num_signs or not engine.is_working or looked_at is None:
            self._num_signs, self._still_s = num_signs, 0.0
        else:
            self._still_s += min(now - looked_at, _LONGEST_LOOK_S)
        if not engine.is_alive:
            raise ReplicaUnavailable(
                "expected the router's step loop to run, found that it ended: see the router's log; send the sequence "
                "to another router"
            )
        if self._still_s >= self._stuck_after_s:
            raise ReplicaUnavailable(
                f"expected a step to get on within {self._stuck_after_s:g} s, found it stuck; send the sequence to "
                "another router"
            )
