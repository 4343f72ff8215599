"""A router that follows a script: implements RouterClient, so that protocol tests need no model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Sequence

from cluster.router_client import ExpertReplicaInfo, PlacementInfo, RouterLoad
from protos.errors import NoReplica
from router.request import (
    Ended,
    EngineEvent,
    EngineLoad,
    GenerationRequest,
    PromptDone,
    TokenChosen,
    TokenLogprob,
)

_REPLICA = ExpertReplicaInfo(
    replica_id="experts-0", group="0", address="127.0.0.1:1", expert_ids=(0, 1), weight_bytes=10, pid=1
)

HOLD = "hold"
"""A step of a script: nothing comes any more, until the generator is closed."""

Step = list[EngineEvent] | Exception | str
Script = Callable[[GenerationRequest], Iterable[Step]]


def says(*token_ids: int, reason: str = "length") -> Script:
    """Generate these tokens, one a step, with logprobs when asked for."""

    def script(request: GenerationRequest) -> Sequence[Step]:
        scored = None
        if request.prompt_logprobs is not None:
            scored = tuple(logprob(token, request.prompt_logprobs) for token in request.prompt_ids)
        tokens = [
            TokenChosen(token_id=token, logprob=None if request.logprobs is None else logprob(token, request.logprobs))
            for token in token_ids[: request.max_tokens]
        ]
        return [[], [PromptDone(logprobs=scored)], *([token] for token in tokens), [Ended(reason=reason)]]

    return script


def then_holds(*token_ids: int) -> Script:
    """Generate these tokens and then hang."""
    return lambda request: [*says(*token_ids)(request)[:-1], HOLD]


def babbles(request: GenerationRequest) -> Iterator[Step]:
    """Generate the same token as fast as the loop turns, without end."""
    yield from ([], [PromptDone()])
    while True:
        yield [TokenChosen(token_id=72)]


def fails(error: Exception, *token_ids: int) -> Script:
    """Generate these tokens and then fail; without tokens, refuse."""
    if not token_ids:
        return lambda request: [error]
    return lambda request: [*says(*token_ids)(request)[:-1], [Ended(reason="error", error=error)]]


def logprob(token_id: int, num_top: int) -> TokenLogprob:
    """A logprob that tells which token it belongs to."""
    top = tuple((token_id + rank, -token_id / 1000 - rank) for rank in range(num_top))
    return TokenLogprob(token_id=token_id, logprob=-token_id / 1000, top=top)


class ScriptedRouter:
    """Follows a script for every request, and knows which of its generators are open."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.requests: list[GenerationRequest] = []
        self.open: set[str] = set()
        self.replicas = 1
        self.loads: tuple[RouterLoad, ...] | None = None
        """What `load` answers; None: as many idle routers as there are `replicas`."""
        self.placement: PlacementInfo | Exception = PlacementInfo(version=3, expert_replicas=(_REPLICA,))
        """What `describe` answers or raises."""
        self.descriptions = 0
        """Times `describe` was asked."""
        self._changed = threading.Condition()

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[list[EngineEvent], None]:
        with self._changed:
            self.requests.append(request)
            self.open.add(request.request_id)
            self._changed.notify_all()
        try:
            for step in self.script(request):
                if isinstance(step, Exception):
                    raise step
                if step == HOLD:
                    await asyncio.get_running_loop().create_future()
                await asyncio.sleep(0)
                yield step
        finally:
            with self._changed:
                self.open.discard(request.request_id)
                self._changed.notify_all()

    def wait_until_open(self, count: int, timeout_s: float = 20.0) -> bool:
        """Wait until so many generators are open."""
        with self._changed:
            return self._changed.wait_for(lambda: len(self.open) == count, timeout_s)

    async def load(self) -> tuple[RouterLoad, ...]:
        if self.loads is not None:
            return self.loads
        if not self.replicas:
            raise NoReplica("expected at least one router, found none that answers; wait for one to start")
        load = EngineLoad(
            running=len(self.open),
            waiting=0,
            queued_prompt_tokens=0,
            kv_used_bytes=25,
            kv_total_bytes=100,
            slots=4,
            generated_tokens=7,
        )
        return tuple(RouterLoad(replica_id=f"router-{index}", load=load) for index in range(self.replicas))

    async def describe(self) -> PlacementInfo:
        self.descriptions += 1
        if isinstance(self.placement, Exception):
            raise self.placement
        return self.placement
