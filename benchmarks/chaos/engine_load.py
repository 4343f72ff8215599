"""A steady load put to an engine in this process instead of a server."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from protos.errors import ServingError
from protos.inference.v1 import inference_pb2 as pb
from router.engine import Engine
from router.request import Ended, EngineEvent, GenerationRequest, SamplingParams, TokenChosen

from .record import StreamRecord
from .requests import Request
from .steady_load import Ask, SteadyLoad


class EngineLoad(SteadyLoad):
    """Streams of an engine.

    Args:
        engine: a started engine.
        requests: what to ask.
        workers: streams at once.
        deadline_s: seconds after which a stream counts as failed.
    """

    def __init__(self, engine: Engine, requests: Sequence[Request], workers: int, deadline_s: float = 120.0) -> None:
        super().__init__(requests, workers, deadline_s)
        self._engine = engine
        self._names = itertools.count()

    @asynccontextmanager
    async def _open(self, worker: int) -> AsyncIterator[Ask]:
        yield self._ask

    async def _ask(self, request: Request, record: StreamRecord) -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()

        def take(event: EngineEvent) -> None:
            """Note an event, in the engine's thread, when it comes."""
            second = time.monotonic()
            if isinstance(event, TokenChosen):
                record.arrivals.append((second, 1))
                record.token_ids.append(event.token_id)
                record.logprobs += [event.logprob.logprob] if event.logprob else []
            elif isinstance(event, Ended):
                record.error = None if event.error is None else f"{event.error.reason}: {event.error.message}"
                record.finish_reason = pb.FINISH_REASON_LENGTH if event.reason == "length" else pb.FINISH_REASON_STOP
                record.completion_tokens = len(record.token_ids)
                record.ended_s = second
                loop.call_soon_threadsafe(ended.set_result, None)

        try:
            self._engine.submit(self._generation(request), take)
        except ServingError as error:
            record.error, record.ended_s = str(error), time.monotonic()
            return
        await ended  # every stream of the engine ends, at its deadline at the latest

    def _generation(self, request: Request) -> GenerationRequest:
        """Return a request as front doors hand it to routers."""
        greedy = SamplingParams(temperature=0.0)
        sampled = SamplingParams(temperature=0.8, top_p=0.95, seed=request.seed or 0)
        return GenerationRequest(
            request_id=f"chaos-{next(self._names)}",
            prompt_ids=request.prompt_ids,
            max_tokens=request.max_tokens,
            sampling=greedy if request.seed is None else sampled,
            logprobs=request.logprobs,
            timeout_s=self._deadline_s,
        )
