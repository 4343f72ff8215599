"""A thousand random requests at once: nothing leaks, every stream ends, and company changes no greedy token."""

from __future__ import annotations

import queue
import random
from dataclasses import dataclass, replace

import pytest

from protos.errors import DeadlineExceeded
from router.engine import Engine
from router.kv_cache.layout import CacheLayout
from router.limits import EngineLimits
from router.request import (
    Ended,
    EngineEvent,
    GenerationRequest,
    PromptDone,
    PromptProgress,
    SamplingParams,
    TokenChosen,
)
from router.transport.local import LocalTransport
from tests.tiny import TINY, tiny_decoder

NUM_REQUESTS = 1000
CONTEXT = 96
WAIT_S = 600
LAYOUT = CacheLayout(TINY, "float32", 4)


@dataclass
class Caller:
    """One random request, who hears its events, and when it gives up."""

    request: GenerationRequest
    cancel_after: int | None
    """Events after which it cancels; None: never."""

    def __post_init__(self) -> None:
        self.events: list[EngineEvent] = []
        self.done: queue.Queue = queue.Queue()
        self.engine: Engine | None = None

    def __call__(self, event: EngineEvent) -> None:
        self.events.append(event)
        if isinstance(event, Ended):
            self.done.put("ended")
        elif self.cancel_after is not None and len(self.events) == self.cancel_after:
            self.engine.cancel(self.request.request_id)
            self.done.put("cancelled")

    def start(self, engine: Engine) -> None:
        self.engine = engine
        engine.submit(self.request, self)
        if self.cancel_after == 0:
            engine.cancel(self.request.request_id)
            self.done.put("cancelled")

    @property
    def tokens(self) -> list[int]:
        return [event.token_id for event in self.events if isinstance(event, TokenChosen)]


def random_callers(seed: int) -> list[Caller]:
    """Return requests that share prefixes, come n at a time, are sampled, stopped, late and cancelled."""
    dice = random.Random(seed)
    prefixes = [tuple(dice.randrange(3, TINY.vocab_size) for _ in range(40)) for _ in range(5)]
    callers: list[Caller] = []
    while len(callers) < NUM_REQUESTS:
        prompt = dice.choice(prefixes)[: dice.randrange(0, 41)]
        prompt += tuple(dice.randrange(3, TINY.vocab_size) for _ in range(dice.randrange(1, 20)))
        greedy = dice.random() < 0.5
        template = GenerationRequest(
            request_id="",
            prompt_ids=prompt,
            max_tokens=dice.randrange(1, 14),
            sampling=SamplingParams(temperature=0.0 if greedy else 1.0, top_k=dice.choice([0, 5])),
            stop_ids=frozenset(dice.sample(range(3, TINY.vocab_size), dice.choice([0, 0, 4]))),
            logprobs=dice.choice([None, None, 2]),
            prompt_logprobs=dice.choice([None, None, None, 1]),
            priority=dice.choice([0, 0, 0, -1, 1]),
            timeout_s=dice.choice([None, None, None, None, WAIT_S, 1e-6]),
        )
        for _ in range(dice.choice([1, 1, 1, 4])):
            request = replace(
                template,
                request_id=f"r{len(callers)}",
                sampling=replace(template.sampling, seed=dice.randrange(2**64)),
            )
            callers.append(Caller(request, dice.choice([None, None, None, None, 0, 1, 2, 5])))
    return callers[:NUM_REQUESTS]


def start_engine(**changes) -> Engine:
    decoder, weights = tiny_decoder()
    limits = EngineLimits(context_length=CONTEXT, page_tokens=4, max_waiting=NUM_REQUESTS, **changes)
    engine = Engine(decoder, LocalTransport(weights.run_experts), limits)
    engine.start()
    return engine


@pytest.mark.timeout(900)
def test_a_thousand_random_requests_end_as_they_would_alone_and_leave_every_page_free():
    callers = random_callers(seed=0)
    # There is room for some of the pages that have to make way; the others are computed again.
    tiers = {"host_kv_bytes": 20_000, "disk_kv_bytes": 60_000}
    crowded = start_engine(kv_bytes=6 * LAYOUT.sequence_bytes(CONTEXT), slots=24, step_tokens=48, **tiers)
    for caller in callers:
        caller.start(crowded)
    outcomes = [caller.done.get(timeout=WAIT_S) for caller in callers]
    crowded.stop()
    load = crowded.load()
    crowded._kv.check()
    assert (load.running, load.waiting, load.kv_used_bytes) == (0, 0, 0)
    assert load.preemptions > 0
    assert load.cached_tokens > 0
    assert load.kv_tiers.restored_host_bytes > 0
    for caller, outcome in zip(callers, outcomes, strict=True):
        check_stream(caller, outcome)
    alone = start_engine(kv_bytes=10_000_000, slots=1, step_tokens=CONTEXT, prefix_cache=False)
    for caller, outcome in zip(callers, outcomes, strict=True):
        if caller.request.sampling.temperature == 0 and caller.tokens:
            lonely = Caller(replace(caller.request, timeout_s=None), None)
            lonely.start(alone)
            lonely.done.get(timeout=WAIT_S)
            expected = lonely.tokens if outcome == "ended" else lonely.tokens[: len(caller.tokens)]
            assert caller.tokens == expected, f"{caller.request}"
    alone.stop()


def check_stream(caller: Caller, outcome: str) -> None:
    """Check that events came in order and nothing came twice."""
    # How often a prompt's progress is told depends on how long it takes.
    kinds = [type(event) for event in caller.events if not isinstance(event, PromptProgress)]
    assert kinds.count(Ended) <= 1
    if outcome == "ended":
        end = caller.events[-1]
        assert isinstance(end, Ended)
        if end.error is not None:
            assert isinstance(end.error, DeadlineExceeded)
            assert caller.request.timeout_s == 1e-6
            return
        assert kinds[0] is PromptDone
        assert kinds[1:-1] == [TokenChosen] * (len(kinds) - 2)
        assert (end.reason == "length") == (len(caller.tokens) == caller.request.max_tokens)
