"""The front door's core, the same under every API: a checked request in, its events out.

    admit -> one sequence per choice on the routers -> merge -> Started, Progress ..., Delta ..., Finished

However a request ends (finished, failed, late, its caller gone), every sequence it has on a router is closed before
`generate` returns. So an API only has to close the generator.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Mapping, Sequence
from contextlib import ExitStack, aclosing
from typing import TYPE_CHECKING, Any, TypeVar

from cluster.admission import Admission, Ticket
from cluster.auth.quota import ANYBODY, Caller
from cluster.choice import Choice
from cluster.class_queue import Turn
from cluster.front_door_metrics import ClassLoad, FrontDoorMetrics, Stopwatch
from cluster.limits import FrontDoorLimits
from cluster.merge import merge, within
from cluster.pool import Pool, PoolAccess
from cluster.progress_report import PERIOD_S, ProgressReport
from cluster.refused_lines import RefusedLines
from cluster.replay import outliving_routers
from cluster.request_id import RequestId
from cluster.request_record import RequestRecord
from cluster.router_client import PlacementInfo, RouterClient, RouterLoad
from cluster.served_model import ServedModel
from cluster.service_events import Delta, Finished, ServiceEvent, Started, Usage
from cluster.validation import CompletionRequest, sequences
from protos.errors import Draining, NoReplica
from router.request import GenerationRequest

if TYPE_CHECKING:
    from cluster.tracing import Tracing

_LATE_S = 5.0
"""Seconds beyond its longest time that a request may take to end by itself."""
Answer = TypeVar("Answer")


class InferenceService:
    """Generates for the front door's APIs. Belongs to one event loop.

    Args:
        model: what is served.
        router: reaches the routers, where there is a pool for long requests those for all others.
        limits: what to take on for them.
        long: the pool for requests of `model.long_from` tokens and more; None: there is none.
        progress_s: seconds between two reports of progress.
        tracing: makes spans of requests; None: nobody does.
    """

    def __init__(
        self,
        model: ServedModel,
        router: RouterClient,
        limits: FrontDoorLimits | None = None,
        *,
        long: PoolAccess | None = None,
        progress_s: float = PERIOD_S,
        tracing: Tracing | None = None,
    ) -> None:
        assert (long is None) == (model.long_from is None), "a pool for long requests goes with a length to begin at"
        self.model = model
        self.limits = limits or FrontDoorLimits()
        self._standard = Pool("standard", PoolAccess(router, self.limits), queues=False)
        self.long = None if long is None else Pool("long", long, queues=True)
        """The pool for long requests; None: there is none."""
        self.metrics = FrontDoorMetrics(model.name, [each.name for each in self._pools])
        self._progress_s = progress_s
        self._tracing = tracing
        self._refused_lines = RefusedLines()
        self._is_draining = self._is_leaving = False

    @property
    def admission(self) -> Admission:
        """Return what is in flight, long requests left out."""
        return self._standard.admission

    @property
    def longest_s(self) -> float:
        """Return the seconds after which no request runs any more, whatever its client does."""
        return max(each.limits.request_timeout_s for each in self._pools) + _LATE_S

    @property
    def num_sequences(self) -> int:
        """Count the sequences in flight, those that wait for a router included."""
        return sum(each.admission.num_sequences for each in self._pools)

    @property
    def is_draining(self) -> bool:
        """Tell whether new requests are refused."""
        return self._is_draining

    @property
    def is_leaving(self) -> bool:
        """Tell whether nobody should come here any more, though new requests may still be taken."""
        return self._is_leaving

    @property
    def _pools(self) -> list[Pool]:
        return [self._standard] if self.long is None else [self._standard, self.long]

    def class_loads(self) -> list[ClassLoad]:
        """Return what is in flight here, by length class."""
        return [
            ClassLoad(
                name=each.name,
                num_sequences=each.admission.num_sequences,
                num_in_line=each.queue.num_waiting if each.queue else 0,
                num_queued_prompt_tokens=each.admission.num_queued_prompt_tokens,
            )
            for each in self._pools
        ]

    def drain(self) -> None:
        """Refuse new requests; those that run go on, wherever their routers go."""
        self._is_draining = self._is_leaving = True

    def leave(self) -> None:
        """Tell whoever asks that nobody should come here any more; who comes all the same is served."""
        self._is_leaving = True

    def record(self, api: str, request_id: RequestId, headers: Mapping[str, str]) -> RequestRecord:
        """Begin to take note of a request.

        Args:
            api: completions, chat or grpc.
            request_id: its name.
            headers: the client's, names in lower case.
        """
        span = None if self._tracing is None else self._tracing.request(api, request_id.value, headers)
        return RequestRecord(self.metrics, api, request_id, span, self._refused_lines)

    async def generate(
        self, request: CompletionRequest, record: RequestRecord | None = None, caller: Caller = ANYBODY
    ) -> AsyncGenerator[ServiceEvent, None]:
        """Run a request; close the generator to cancel it.

        Args:
            request: what to generate.
            record: takes note of it; None: nobody does.
            caller: whose quota its tokens count against, and whose share of the routers it takes.

        Raises:
            RateLimited: the caller has used as many tokens as they may, or has as many sequences.
            PermissionDenied: the caller may not go before others.
            Draining: this front door is about to stop.
            Overloaded: this front door or the routers are full.
            DeadlineExceeded: the request took too long.
            ServingError: a sequence failed; the others are cancelled.
        """
        if self._is_draining:
            raise Draining("expected a server that stays, found one that is stopping; send the request elsewhere")
        pool = self._pool_of(request)
        timeout_s = min(request.timeout_s or pool.limits.request_timeout_s, pool.limits.request_timeout_s)
        traceparent = record.traceparent if record else ""
        generations = sequences(request, timeout_s, traceparent, caller.name, caller.even_share)
        num_tokens = request.num_prompt_tokens * request.num_choices
        with ExitStack() as stack:
            stack.enter_context(caller.sequences(len(generations), request.priority))
            ticket = stack.enter_context(pool.admission.admit(len(generations), num_tokens))
            caller.take_prompt(request.num_prompt_tokens)
            choices = [Choice(index, self.model.tokenizer, request.stop) for index in range(len(generations))]
            if record is not None:
                record.admitted(request, choices)
            watch = stack.enter_context(self.metrics.stopwatch(pool.name, choices, request.num_prompt_tokens))
            turns = [pool.queue.join(each) if pool.queue else None for each in generations]
            in_line = [each for each in turns if each is not None]
            for turn in in_line:
                stack.callback(turn.leave)
            report = ProgressReport(choices, generations, in_line, self._progress_s)
            sources = [
                self._follow(pool, *each, ticket, watch) for each in zip(choices, generations, turns, strict=True)
            ]
            held: list[Delta] = []
            started = False
            async with aclosing(within(merge([*sources, report.ticks()] if in_line else sources), timeout_s)) as deltas:
                async for delta in deltas:
                    if delta is not None:
                        caller.take_answer(len(delta.token_ids))
                        held.append(delta)
                    if not started and _can_start(request, choices):
                        started = True
                        self.metrics.count_prompt_tokens(request.num_prompt_tokens)
                        yield _started(request, choices)
                    if started:
                        if held:
                            report.end()
                        for each in held:
                            yield each
                        held.clear()
                    if (progress := report.next()) is not None:
                        yield progress
            yield Finished(usage=_usage(request, choices))

    def _pool_of(self, request: CompletionRequest) -> Pool:
        """Return the pool of a request's length class."""
        if self.long is None or self.model.long_from is None or request.longest < self.model.long_from:
            return self._standard
        return self.long

    async def _follow(
        self,
        pool: Pool,
        choice: Choice,
        generation: GenerationRequest,
        turn: Turn | None,
        ticket: Ticket,
        watch: Stopwatch,
    ) -> AsyncGenerator[Delta | None, None]:
        """Yield a sequence's deltas, and None for a step that brings none."""
        generate = pool.client.generate if turn is None else turn.generate
        events_of = outliving_routers(generate, generation, self.metrics.count_replay)
        async with aclosing(events_of) as batches:
            async for events in batches:
                prompt_was_done = choice.prompt_is_done
                delta = choice.take(events)
                if choice.prompt_is_done and not prompt_was_done:
                    ticket.prompt_computed(len(generation.prompt_ids))
                if turn is not None:
                    turn.num_done = turn.num_prompt_tokens if choice.prompt_is_done else choice.num_prompt_done
                    turn.is_complete = choice.finish_reason is not None
                if delta is not None:
                    watch.tokens(choice.index, len(delta.token_ids))
                yield delta
                if choice.finish_reason:
                    break
        if turn is not None:
            turn.leave()  # others may have its slot, whatever becomes of the request's other choices

    async def load(self) -> tuple[RouterLoad, ...]:
        """Return the load of every router replica; empty where none runs and the first request starts one.

        Raises:
            NoReplica: none answers in time, or nobody should come here as this front door is about to stop.
        """
        if self._is_leaving:
            raise NoReplica("expected a server that stays, found one that is stopping; send requests elsewhere")
        return await self._ask(self._loads())

    async def describe(self) -> PlacementInfo:
        """Return where the experts are.

        Raises:
            NoReplica: the directory does not answer in time.
        """
        return await self._ask(self._standard.client.describe())

    async def _loads(self) -> tuple[RouterLoad, ...]:
        loads = self._standard.client.load()
        if self.long is None:
            return await loads
        standard, long = await asyncio.gather(loads, self.long.client.load(), return_exceptions=True)
        if isinstance(standard, BaseException):
            raise standard
        # Without an answer of long ones, everybody else is served all the same.
        return standard if isinstance(long, BaseException) else (*standard, *long)

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
