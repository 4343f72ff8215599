"""What is put under load: anything that answers a prompt with a stream of tokens."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from cluster.bench.load import PlannedRequest
from cluster.bench.measurement import Measurement

INSPECT_TIMEOUT_S = 10.0
"""Seconds a server has to say what it serves."""


class Clock:
    """Seconds since the run began; the one clock of everything that is measured."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def now_s(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self._start

    def restart(self) -> None:
        """Begin again at 0."""
        self._start = time.perf_counter()


Call = Callable[[Measurement], Awaitable[None]]
"""Sends a prepared request and notes what comes; raises CallFailed, or is cancelled."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerFacts:
    """What a server says of itself."""

    model: str
    """Name that requests will carry."""
    context_length: int | None
    """Most tokens of prompt and answer together; None: not told."""
    description: str
    """Server and API for people."""


class Target(Protocol):
    """A server under load."""

    async def inspect(self) -> ServerFacts:
        """Ask what it serves; the first thing to be called.

        Raises:
            ServingError: nobody answers, or not what was expected.
        """
        ...

    def prepare(self, request: PlannedRequest) -> Call:
        """Encode a request, so that sending it costs as little as can be."""
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...
