"""Lets a sequence outlive its router: what one router leaves unfinished, another goes on with.

    router A    prompt ................... | a b c d     and is gone
    router B    prompt ........... a b c d | e f g h     num_replayed = 4

A token is fixed by those before it, the seed and its position, so B goes on as A would have. It computes what A had
computed, or finds it in its prefix cache, and no expert remembers anything: nothing else has to be saved or moved.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace

from cluster.logs import fields
from protos.errors import (
    DeadlineExceeded,
    Draining,
    NoReplica,
    Overloaded,
    ReplicaUnavailable,
    ServingError,
)
from router.request import Ended, EngineEvent, GenerationRequest, PromptDone, PromptProgress, TokenChosen

_LOG = logging.getLogger(__name__)

FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 1.0
"""Seconds between two attempts; each pause is twice the one before."""
MOST_LOST = 5
"""Routers that may be lost in a row without one more token. A sequence that saw so many end may be what ends them, and
must not be handed to the next."""

Generate = Callable[[GenerationRequest], AsyncGenerator[list[EngineEvent], None]]
"""Generates a sequence on some router; see RouterClient."""

_GONE = (ReplicaUnavailable, Draining)
"""What a router ends a sequence with that another can finish. Not NoReplica: its experts are missing everywhere."""
_WAITED_OUT = (NoReplica, Overloaded)
"""What refuses a sequence and passes: no router runs, or all are full. A caller hears of it only before the sequence
was accepted."""


async def outliving_routers(
    generate: Generate, request: GenerationRequest, on_replay: Callable[[], None]
) -> AsyncGenerator[list[EngineEvent], None]:
    """Generate a sequence on as many routers as it takes; see RouterClient.generate, of which the result is one.

    It goes on until the sequence's end, or until it is closed: who closes it bounds the time.

    Args:
        generate: asks a router.
        request: the whole sequence.
        on_replay: called whenever a router is lost that had accepted the sequence.

    Raises:
        DeadlineExceeded: the request's time is over.
        ReplicaUnavailable: too many routers ended while they had this sequence.
        ServingError: it was refused before any router accepted it, or failed for a reason that a router cannot help.
    """
    now_s = asyncio.get_running_loop().time
    story = _Story(request, now_s())
    pause_s = FIRST_PAUSE_S
    while True:
        is_running = False
        try:
            async with aclosing(generate(story.rest(now_s()))) as batches:
                async for batch in batches:
                    is_running, pause_s = True, FIRST_PAUSE_S
                    yield story.take(batch)
                    if story.has_ended:
                        return
            loss = story.handed_over or ReplicaUnavailable(
                "expected the router to say how the sequence ended, found its stream closed; send the request again"
            )
        except _GONE as error:
            loss = error
        except _WAITED_OUT as error:
            if not story.was_accepted:
                raise
            loss = error
        if is_running:
            if story.is_complete:
                yield [Ended(reason="length")]
                return
            story.lose(loss)
            on_replay()
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)


class _Story:
    """What became of a sequence so far, on all its routers.

    Args:
        request: the whole sequence.
        now_s: second from which its time is counted.
    """

    def __init__(self, request: GenerationRequest, now_s: float) -> None:
        self._request = request
        self._deadline_s = None if request.timeout_s is None else now_s + request.timeout_s
        self._emitted: list[int] = []
        self._prompt_is_done = False
        self._num_attempts = 0
        self._num_lost = 0
        self.was_accepted = False
        self.has_ended = False
        self.handed_over: ServingError | None = None
        """Why the last router ended it for another to go on."""

    @property
    def is_complete(self) -> bool:
        """Tell whether all tokens are there, so that only its end was lost."""
        return len(self._emitted) == self._request.max_tokens

    def rest(self, now_s: float) -> GenerationRequest:
        """Return what is left to generate, under a name of its own: a router thought dead may still speak of it.

        Raises:
            DeadlineExceeded: no time is left.
        """
        request, emitted = self._request, tuple(self._emitted)
        attempt = self._num_attempts
        self._num_attempts += 1
        self.handed_over = None
        if attempt == 0:
            return request
        return replace(
            request,
            request_id=f"{request.request_id}~{attempt}",
            prompt_ids=request.prompt_ids + emitted,
            num_replayed=request.num_replayed + len(emitted),
            max_tokens=request.max_tokens - len(emitted),
            prompt_logprobs=None if self._prompt_is_done else request.prompt_logprobs,
            timeout_s=None if self._deadline_s is None else self._time_left_s(self._deadline_s - now_s),
        )

    def take(self, batch: Sequence[EngineEvent]) -> list[EngineEvent]:
        """Take note of what a router tells; return what of it is news."""
        self.was_accepted = True
        news: list[EngineEvent] = []
        for event in batch:
            match event:
                case PromptProgress() if self._prompt_is_done:
                    continue
                case PromptDone():
                    if self._prompt_is_done:
                        continue
                    self._prompt_is_done = True
                case TokenChosen():
                    self._emitted.append(event.token_id)
                    self._num_lost = 0
                case Ended(error=ReplicaUnavailable() | Draining() as error):
                    self.handed_over = error
                    break
                case Ended():
                    self.has_ended = True
            news.append(event)
        return news

    def lose(self, loss: ServingError) -> None:
        """Take note of a router that was lost while it had the sequence.

        Raises:
            ServingError: it was one too many.
        """
        self._num_lost += 1
        if self._num_lost > MOST_LOST:
            raise loss
        _LOG.warning(
            "a sequence goes on at another router: %s",
            loss.message,
            extra=fields(request_id=self._request.request_id, tokens=len(self._emitted)),
        )

    def _time_left_s(self, left_s: float) -> float:
        if left_s > 0:
            return left_s
        raise DeadlineExceeded(
            f"expected the request to finish within {self._request.timeout_s:g} s, found it unfinished after "
            f"{len(self._emitted)} tokens; allow more time or ask for fewer tokens"
        )
