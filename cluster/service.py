"""The front door's core, the same under every API: a checked request in, its events out.

    admit -> one sequence per choice on the routers -> merge -> Started, Delta ..., Finished

However a request ends (finished, failed, late, its caller gone), every sequence it has on a router is closed before
`generate` returns. So an API only has to close the generator.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

from cluster.admission import Admission, Ticket
from cluster.choice import Choice
from cluster.limits import FrontDoorLimits
from cluster.merge import merge, within
from cluster.metrics import FrontDoorMetrics, Stopwatch
from cluster.replay import outliving_routers
from cluster.router_client import PlacementInfo, RouterClient, RouterLoad
from cluster.served_model import ServedModel
from cluster.service_events import Delta, Finished, ServiceEvent, Started, Usage
from cluster.validation import CompletionRequest, sequences
from protos.errors import Draining, NoReplica
from router.request import GenerationRequest

Answer = TypeVar("Answer")


class InferenceService:
    """Generates for the front door's APIs. Belongs to one event loop.

    Args:
        model: what is served.
        router: reaches the routers.
        limits: what to take on.
    """

    def __init__(self, model: ServedModel, router: RouterClient, limits: FrontDoorLimits | None = None) -> None:
        self.model = model
        self.limits = limits or FrontDoorLimits()
        self.limits.check()
        self.admission = Admission(self.limits)
        self.metrics = FrontDoorMetrics(model.name)
        self._router = router
        self._is_draining = False

    def drain(self) -> None:
        """Refuse new requests; those that run go on, wherever their routers go."""
        self._is_draining = True

    async def generate(self, request: CompletionRequest) -> AsyncGenerator[ServiceEvent, None]:
        """Run a request; close the generator to cancel it.

        Raises:
            Draining: this front door is about to stop.
            Overloaded: this front door or the routers are full.
            DeadlineExceeded: the request took too long.
            ServingError: a sequence failed; the others are cancelled.
        """
        if self._is_draining:
            raise Draining("expected a server that stays, found one that is stopping; send the request elsewhere")
        timeout_s = min(request.timeout_s or self.limits.request_timeout_s, self.limits.request_timeout_s)
        generations = sequences(request, timeout_s)
        num_tokens = request.num_prompt_tokens * request.num_choices
        with self.admission.admit(len(generations), num_tokens) as ticket:
            choices = [Choice(index, self.model.tokenizer, request.stop) for index in range(len(generations))]
            watch = self.metrics.stopwatch()
            follow = [self._follow(*each, ticket, watch) for each in zip(choices, generations, strict=True)]
            held: list[Delta] = []
            started = False
            async with aclosing(within(merge(follow), timeout_s)) as deltas:
                async for delta in deltas:
                    if delta is not None:
                        held.append(delta)
                    if not started and _can_start(request, choices):
                        started = True
                        self.metrics.count_prompt_tokens(request.num_prompt_tokens)
                        yield _started(request, choices)
                    if started:
                        for each in held:
                            yield each
                        held.clear()
            yield Finished(usage=_usage(request, choices))

    async def _follow(
        self, choice: Choice, generation: GenerationRequest, ticket: Ticket, watch: Stopwatch
    ) -> AsyncGenerator[Delta | None, None]:
        """Yield a sequence's deltas, and None for a step that a caller does not see."""
        events_of = outliving_routers(self._router.generate, generation, self.metrics.count_replay)
        async with aclosing(events_of) as batches:
            async for events in batches:
                prompt_was_done = choice.prompt_is_done
                delta = choice.take(events)
                if choice.prompt_is_done and not prompt_was_done:
                    ticket.prompt_computed(len(generation.prompt_ids))
                if delta is not None:
                    watch.tokens(choice.index, len(delta.token_ids))
                yield delta
                if choice.finish_reason:
                    return

    async def load(self) -> tuple[RouterLoad, ...]:
        """Return the load of every router replica; empty where none runs and the first request starts one.

        Raises:
            NoReplica: none answers in time, or nobody should come here as this front door is about to stop.
        """
        if self._is_draining:
            raise NoReplica("expected a server that stays, found one that is stopping; send requests elsewhere")
        return await self._ask(self._router.load())

    async def describe(self) -> PlacementInfo:
        """Return where the experts are.

        Raises:
            NoReplica: the directory does not answer in time.
        """
        return await self._ask(self._router.describe())

    async def _ask(self, question: Coroutine[Any, Any, Answer]) -> Answer:
        try:
            async with asyncio.timeout(self.limits.health_timeout_s):
                return await question
        except TimeoutError as error:
            raise NoReplica(
                f"expected the cluster to answer within {self.limits.health_timeout_s:g} s, found nothing; try again"
            ) from error


def _can_start(request: CompletionRequest, choices: Sequence[Choice]) -> bool:
    """Tell whether what Started says is known: every sequence accepted, the prompts scored if asked for."""
    if request.prompt_logprobs is not None and not all(each.prompt_is_done for each in _firsts(request, choices)):
        return False
    return all(choice.is_accepted for choice in choices)


def _firsts(request: CompletionRequest, choices: Sequence[Choice]) -> Sequence[Choice]:
    """Return the first choice of every prompt."""
    return choices[:: request.num_choices]


def _started(request: CompletionRequest, choices: Sequence[Choice]) -> Started:
    scored = tuple(choice.prompt_logprobs for choice in _firsts(request, choices))
    return Started(
        request_id=request.request_id,
        num_prompt_tokens=request.num_prompt_tokens,
        prompt_logprobs=scored if request.prompt_logprobs is not None else (),
    )


def _usage(request: CompletionRequest, choices: Sequence[Choice]) -> Usage:
    return Usage(
        prompt_tokens=request.num_prompt_tokens,
        completion_tokens=sum(choice.num_tokens for choice in choices),
        cached_tokens=sum(choice.num_cached for choice in _firsts(request, choices)),
    )
