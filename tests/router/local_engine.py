"""Engines over a tiny model with its experts at hand, and a transport that counts, watches and waits at a gate."""

from __future__ import annotations

import functools
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from protos import errors
from router.engine import Engine
from router.kv_tiers.rate import Rate
from router.limits import EngineLimits
from router.request import Ended, GenerationRequest, PromptDone, SamplingParams, TokenChosen
from router.transport.local import LocalTransport
from tests.tiny import TinyWeights, tiny_decoder

WAIT_S = 30
GREEDY = SamplingParams(temperature=0.0)


class WatchedTransport(LocalTransport):
    """Counts a step's tokens, calls `watch` at every dispatch, and waits like one whose replicas are gone at a gate."""

    def __init__(self, weights: TinyWeights) -> None:
        super().__init__(weights.run_experts)
        self.gate = threading.Event()
        self.gate.set()
        self.waits = threading.Event()
        """Set while a step waits at the gate."""
        self.watch: Callable[[], None] = lambda: None
        self.num_tokens = 0
        """Tokens computed so far."""
        self.failure: errors.ServingError | None = None
        """Raised by the next dispatch that passes the gate."""
        self.poison = 0
        """So many more dispatches return NaN."""

    def dispatch(self, layer, plan, hidden_ND):
        self.watch()
        while not self.gate.wait(0.005):
            self.waits.set()
            self.on_wait()
        self.waits.clear()
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if layer == 0:
            self.num_tokens += hidden_ND.shape[0]
        if self.poison:
            self.poison -= 1
            hidden_ND = hidden_ND * torch.nan
        return super().dispatch(layer, plan, hidden_ND)


class Stream:
    """Collects a sequence's events."""

    def __init__(self) -> None:
        self._events: queue.Queue = queue.Queue()
        self.last: Ended | None = None
        self.num_cached: int | None = None
        self.logprobs: tuple | None = None
        self.ids: list[int] = []

    def __call__(self, event) -> None:
        self._events.put(event)

    def take(self):
        """Return the next event."""
        event = self._events.get(timeout=WAIT_S)
        if isinstance(event, PromptDone):
            self.num_cached, self.logprobs = event.num_cached, event.logprobs
        elif isinstance(event, TokenChosen):
            self.ids.append(event.token_id)
        elif isinstance(event, Ended):
            self.last = event
        return event

    def tokens(self) -> list[int]:
        """Return every token once the sequence has ended as it should."""
        while self.last is None:
            self.take()
        assert self.last.reason == "length", self.last
        return self.ids

    def error(self):
        """Return the error the sequence ends with."""
        while self.last is None:
            self.take()
        return self.last.error

    @property
    def is_silent(self) -> bool:
        return self._events.empty()


class FreeRate(Rate):
    """A tier that is always quicker than computing, however long either took."""

    def seconds(self, num_bytes: int) -> float:
        return 0.0


class LocalEngine:
    """An engine, its transport, and what is asked of it."""

    def __init__(self, engine: Engine, transport: WatchedTransport) -> None:
        self.engine = engine
        self.transport = transport

    def ask(self, prompt, max_tokens: int = 8, request_id: str = "one", **fields) -> Stream:
        stream = Stream()
        fields.setdefault("sampling", GREEDY)
        request = GenerationRequest(request_id=request_id, prompt_ids=tuple(prompt), max_tokens=max_tokens, **fields)
        self.engine.submit(request, stream)
        return stream

    def hold_when(self, holds: Callable[[], bool]) -> None:
        """Close the gate before the first dispatch at which something holds."""

        def watch() -> None:
            if holds():
                self.transport.watch = lambda: None
                self.transport.gate.clear()

        self.transport.watch = watch

    def go_on_until_held(self) -> None:
        """Open the gate, and return while a step waits at it again."""
        self.transport.waits.clear()
        self.transport.gate.set()
        assert self.transport.waits.wait(WAIT_S)

    def wait_for(self, holds: Callable[[], bool]) -> None:
        """Ask again and again until something holds."""
        tick = threading.Event()
        for _ in range(int(WAIT_S / 0.005)):
            if holds():
                return
            tick.wait(0.005)
        raise AssertionError(f"load is {self.engine.load()}")

    def is_empty(self) -> bool:
        """Tell whether nobody holds anything."""
        load = self.engine.load()
        return (load.running, load.waiting, load.kv_used_bytes) == (0, 0, 0)


@functools.cache
def tiny_model(**changes: object):
    """Return a decoder and its weights, each read once."""
    decoder, weights = tiny_decoder(**changes)  # type: ignore[arg-type]
    weights.read = functools.cache(weights.read)  # type: ignore[method-assign]
    return decoder, weights


@contextmanager
def local_engine(model_changes: dict | None = None, *, model: str = "", **limits) -> Iterator[LocalEngine]:
    """Run an engine until the block ends; then nobody may hold any page. What tiers have always comes back."""
    decoder, weights = tiny_model(**(model_changes or {}))
    transport = WatchedTransport(weights)
    fields = {"context_length": 128, "kv_bytes": 10_000_000, "slots": 4, "step_tokens": 16} | limits
    local = LocalEngine(Engine(decoder, transport, EngineLimits(**fields), model=model), transport)
    local.engine._tiers.rates = {"host": FreeRate(), "disk": FreeRate()}
    local.engine._tiers.least_wait_s = WAIT_S
    local.engine.start()
    try:
        yield local
    finally:
        transport.gate.set()
        local.engine.stop()
    local.engine._kv.check()
    local.engine._tiers.check()
    assert local.is_empty()


@functools.cache
def tokens_alone(prompt: tuple[int, ...], max_tokens: int, sampling: SamplingParams = GREEDY) -> list[int]:
    """Return what a request generates in an engine of its own, with nothing cached and room for all."""
    with local_engine(prefix_cache=False) as alone:
        return alone.ask(prompt, max_tokens, sampling=sampling).tokens()
