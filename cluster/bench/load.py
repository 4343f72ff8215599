"""The load: which request when, made from settings and a seed and independent of what the server does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice, takewhile

from cluster.bench.arrivals import arrival_times
from cluster.bench.prompts import GivenTexts, Prompt, PromptSource, Stream, TokenPrompts, WordPrompts, rng_of
from cluster.bench.settings import OpenLoop, PromptSettings, Replay, Settings
from cluster.bench.traces import TraceRow, read_trace


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedRequest:
    """A request before it is sent."""

    index: int
    """Its place in the load; from 0."""
    at_s: float | None
    """Seconds after the start at which it is due; None: when a client is free."""
    prompt: Prompt
    """Token ids or text."""
    max_tokens: int
    """Tokens to ask for; at least 1."""

    @property
    def prompt_tokens(self) -> int | None:
        """Length of the prompt; None of a text."""
        return len(self.prompt) if isinstance(self.prompt, list) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shape:
    """Lengths and time of a request, before its prompt is made."""

    at_s: float | None
    input_tokens: int
    output_tokens: int
    hash_ids: tuple[int, ...] | None = None


class Load:
    """Everything that is to be sent; prompts are made when they are asked for.

    Args:
        settings: what to do.
        rows: of the trace, where `settings` replay one.
        context_length: what the server holds at most, in tokens; None: unknown.
    """

    def __init__(self, settings: Settings, rows: list[TraceRow], context_length: int | None) -> None:
        self._settings = settings
        self._rows = rows
        self._source = prompt_source(settings.prompts, settings.endpoint.is_chat, settings.seed)
        is_replay = isinstance(settings.arrival, Replay)
        self._max_context = settings.prompts.max_context or (context_length if is_replay else None)
        self.num_clipped = 0
        """Requests that were cut to the context so far."""

    @property
    def count(self) -> int | None:
        """How many requests there are; None: as many as fit the duration."""
        settings = self._settings
        if isinstance(settings.arrival, Replay):
            return sum(1 for _ in self._shapes())
        return settings.requests if settings.duration_s is None else None

    def requests(self) -> Iterator[PlannedRequest]:
        """Yield the requests in the order of their times."""
        for index, shape in enumerate(self._shapes()):
            yield self._plan(index, shape, Stream.MEASURED)

    def warmup(self) -> Iterator[PlannedRequest]:
        """Yield the requests to send before, as long as the first ones, with prompts of their own, due at once."""
        for index, shape in enumerate(islice(self._shapes(), self._settings.warmup)):
            fresh = _Shape(at_s=None, input_tokens=shape.input_tokens, output_tokens=shape.output_tokens)
            yield self._plan(index, fresh, Stream.WARMUP)

    def _shapes(self) -> Iterator[_Shape]:
        settings = self._settings
        shapes = self._replayed() if isinstance(settings.arrival, Replay) else self._drawn()
        if (limit_s := settings.duration_s) is not None:
            shapes = takewhile(lambda shape: shape.at_s is None or shape.at_s < limit_s, shapes)
        return islice(shapes, settings.requests)

    def _replayed(self) -> Iterator[_Shape]:
        assert isinstance(self._settings.arrival, Replay)
        for row in self._rows:
            yield _Shape(
                at_s=row.at_s * self._settings.arrival.time_scale,
                input_tokens=row.input_tokens,
                output_tokens=row.output_tokens,
                hash_ids=row.hash_ids,
            )

    def _drawn(self) -> Iterator[_Shape]:
        settings = self._settings
        rng = rng_of(settings.seed, Stream.LENGTHS)
        for at_s in self._times():
            input_tokens = settings.prompts.input.draw(rng)
            yield _Shape(at_s=at_s, input_tokens=input_tokens, output_tokens=settings.prompts.output.draw(rng))

    def _times(self) -> Iterator[float | None]:
        arrival = self._settings.arrival
        if isinstance(arrival, OpenLoop):
            yield from arrival_times(
                arrival.rate_per_s, arrival.burstiness, rng_of(self._settings.seed, Stream.ARRIVALS)
            )
        for _ in count():
            yield None

    def _plan(self, index: int, shape: _Shape, stream: Stream) -> PlannedRequest:
        lengths = shape.input_tokens, shape.output_tokens
        clipped = lengths if self._max_context is None else clip_lengths(*lengths, self._max_context)
        self.num_clipped += clipped != lengths and stream is Stream.MEASURED
        input_tokens, output_tokens = clipped
        hash_ids = shape.hash_ids
        prompt = self._source.make(index, input_tokens, hash_ids, stream)
        return PlannedRequest(index=index, at_s=shape.at_s, prompt=prompt, max_tokens=output_tokens)


def plan_load(settings: Settings, context_length: int | None) -> Load:
    """Read the trace, if there is one, and return the load.

    Raises:
        InvalidRequest: the trace is malformed.
    """
    arrival = settings.arrival
    rows = read_trace(arrival.path, arrival.limit) if isinstance(arrival, Replay) else []
    return Load(settings, rows, context_length)


def clip_lengths(input_tokens: int, output_tokens: int, max_context: int) -> tuple[int, int]:
    """Return (prompt, answer) lengths that fit a context; the longer side gives way first, down to half of it.

    Args:
        input_tokens: of the prompt, at least 1.
        output_tokens: of the answer, at least 1.
        max_context: of both together, at least 2.
    """
    output = min(output_tokens, max(max_context - input_tokens, max_context // 2))
    return min(input_tokens, max_context - output), output


def prompt_source(prompts: PromptSettings, is_chat: bool, seed: int) -> PromptSource:
    """Return what makes the prompts."""
    if prompts.texts:
        return GivenTexts(prompts.texts)
    if is_chat:
        return WordPrompts(prompts.shared_prefix, seed)
    return TokenPrompts(prompts.low_id, prompts.high_id, prompts.shared_prefix, seed)
