"""The line of one length class in a front door: who waits for room at a router, in which order, and for how long.

    join ... waiting, first in rank first --> a router accepts --> running ... leave

Only the first in line asks routers; while they are full it asks again whenever a sequence has left, and every so often,
for other front doors have sequences there, too. How long the line may get is what the class's Admission says.
"""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import replace

from cluster.expected_start import RunningSequence, expected_start_s
from cluster.replay import Generate
from protos.errors import Overloaded
from router.request import EngineEvent, GenerationRequest
from router.turns import Rank, next_turn

_FIRST = -(2**63)
"""A priority before all that requests may have."""
_LEAST_S = 0.001
"""Of a time that is over: whoever watches the deadline tells."""
ASK_AGAIN_S = 0.5
"""Seconds after which full routers are asked again though no sequence of this front door has left."""
_REMEMBER = 0.7
"""Share of a past measure in the next one."""


class ClassQueue:
    """Belongs to one event loop.

    Args:
        generate: asks a router of the class's pool; see RouterClient.
        ask_again_s: seconds after which full routers are asked again.
        clock: seconds, monotonic.
    """

    def __init__(
        self, generate: Generate, *, ask_again_s: float = ASK_AGAIN_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._generate = generate
        self._ask_again_s = ask_again_s
        self._clock = clock
        self._waiting: list[Turn] = []
        self._running: list[Turn] = []
        self._num_joined = 0
        self._seconds_per_token: float | None = None
        self._changed = asyncio.Event()

    def join(self, request: GenerationRequest) -> Turn:
        """Queue a sequence; whoever does must `leave` with what it gets."""
        self._num_joined += 1
        turn = Turn(self, request, self._rank(request), self._clock())
        insort(self._waiting, turn, key=lambda each: each.rank)
        return turn

    def _rank(self, request: GenerationRequest) -> Rank:
        waiting = ((each.rank, each.tenant) for each in self._waiting)
        started = (each.rank for each in self._running)
        number = next_turn(request.priority, request.tenant, waiting, started)
        return request.priority, number, self._num_joined

    @property
    def num_waiting(self) -> int:
        """Count the sequences that wait for room."""
        return len(self._waiting)

    def position(self, turn: Turn) -> int:
        """Return a sequence's place in line, 1 being the next; 0: it does not wait."""
        return self._waiting.index(turn) + 1 if turn in self._waiting else 0

    def expected_start_s(self, turn: Turn) -> float | None:
        """Return the seconds until a sequence that waits gets room; None: not known."""
        now = self._clock()
        ahead = self._waiting[: self.position(turn) - 1]
        return expected_start_s(
            [
                RunningSequence(
                    num_prompt_tokens=each.num_prompt_tokens, num_done=each.num_done, elapsed_s=now - each.started_s
                )
                for each in self._running
            ],
            [each.num_prompt_tokens for each in ahead],
            self._seconds_per_token,
        )

    async def generate(self, turn: Turn, request: GenerationRequest) -> AsyncGenerator[list[EngineEvent], None]:
        """Generate once it is a sequence's turn and a router has room.

        One that had room before, and lost its router, asks at once; where none has room, it is the next in line.
        """
        while True:
            if turn in self._waiting and self._waiting[0] is not turn:
                await self._changed.wait()
                continue
            # What it has waited in line, no router has to give it any more; who replays it has counted that.
            asked = request if turn.started_s else _after(request, self._clock() - turn.joined_s)
            async with aclosing(self._generate(asked)) as batches:
                try:
                    first = await anext(batches)
                except StopAsyncIteration:
                    return
                except Overloaded:
                    self._wait_again(turn)
                    await self._wait_for_change()
                    continue
                self._start(turn)
                yield first
                async for batch in batches:
                    yield batch
                return

    def leave(self, turn: Turn) -> None:
        """Forget a sequence, wherever it is."""
        if turn in self._waiting:
            self._waiting.remove(turn)
        elif turn in self._running:
            self._running.remove(turn)
            if turn.is_complete:
                self._measure((self._clock() - turn.started_s) / turn.num_prompt_tokens)
        self._tell_all()

    def _start(self, turn: Turn) -> None:
        if turn in self._waiting:
            self._waiting.remove(turn)
            turn.started_s = turn.started_s or self._clock()
            self._running.append(turn)
            self._tell_all()

    def _wait_again(self, turn: Turn) -> None:
        """Put one that had room at the head of the line."""
        if turn in self._running:
            self._running.remove(turn)
            turn.rank = (_FIRST, *turn.rank[1:])
            insort(self._waiting, turn, key=lambda each: each.rank)

    def _measure(self, seconds_per_token: float) -> None:
        known = self._seconds_per_token
        new = seconds_per_token
        self._seconds_per_token = new if known is None else _REMEMBER * known + (1 - _REMEMBER) * new

    async def _wait_for_change(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._ask_again_s):
                await self._changed.wait()

    def _tell_all(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


def _after(request: GenerationRequest, waited_s: float) -> GenerationRequest:
    """Return a request of which some time is over."""
    if request.timeout_s is None:
        return request
    return replace(request, timeout_s=max(request.timeout_s - waited_s, _LEAST_S))


class Turn:
    """One sequence's place, from joining to leaving.

    Args:
        queue: it belongs to.
        request: what to generate.
        rank: who is served first; the lower number.
        joined_s: when it joined.
    """

    def __init__(self, queue: ClassQueue, request: GenerationRequest, rank: Rank, joined_s: float) -> None:
        self._queue = queue
        self.num_prompt_tokens = len(request.prompt_ids)
        self.tenant = request.tenant
        self.rank = rank
        self.joined_s = joined_s
        self.started_s = 0.0
        """When it got room."""
        self.num_done = 0
        """Prompt tokens computed."""
        self.is_complete = False
        """Whether it came to its end: one that was cancelled tells nothing of how long others take."""

    @property
    def position(self) -> int:
        """Return its place in line; see ClassQueue."""
        return self._queue.position(self)

    @property
    def expected_start_s(self) -> float | None:
        """Return the seconds until it gets room; see ClassQueue."""
        return self._queue.expected_start_s(self)

    def generate(self, request: GenerationRequest) -> AsyncGenerator[list[EngineEvent], None]:
        """Generate when it is its turn; see ClassQueue."""
        return self._queue.generate(self, request)

    def leave(self) -> None:
        """Give the place back."""
        self._queue.leave(self)
