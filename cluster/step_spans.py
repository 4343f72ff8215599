"""Spans of steps and of what they ask other processes, and how many of them there may be.

A step computes tokens of many sequences and asks somebody in every layer: a span for each question of each step would
be thousands a second. A trace has its sequence's steps number 1, 2, 4, 8 and so on, those of the prompt and those after
it counted apart: few, but some of every age. The questions of such a step have spans as far as two budgets reach, one
of the sequence, for collectors refuse traces that are too large, and one of the process, whoever asks for traces.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, Tracer, set_span_in_context

from protos.errors import ServingError
from router.trace import StepFacts
from router.trace import StepSpan as AnyStepSpan

MOST_CALLS = 1024
"""Most questions that one sequence's trace tells of, of steps of its prompt and again of those after it."""
_BURST_CALLS, _CALLS_PER_S = 4096, 512.0
_NS = 1_000_000_000


def traceparent(span: Span) -> str:
    """Return a span's name as W3C Trace Context writes it."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


class CallBudget:
    """Bounds the questions a process tells of: clients may ask for as many traces as they like.

    Args:
        burst: most at once.
        per_s: most a second in the long run.
        clock: seconds, monotonic.
    """

    def __init__(
        self, burst: int = _BURST_CALLS, per_s: float = _CALLS_PER_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._burst, self._per_s, self._clock = burst, per_s, clock
        self._left, self._at_s = float(burst), clock()

    def take(self) -> bool:
        """Take one; return False if there is none."""
        now = self._clock()
        self._left = min(self._left + (now - self._at_s) * self._per_s, self._burst)
        self._at_s = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class StepSpans:
    """Makes the spans of one sequence's steps. Belongs to the step loop's thread.

    Args:
        tracer: makes spans.
        parent: the sequence's.
        budget: of the process.
    """

    def __init__(self, tracer: Tracer, parent: Context, budget: CallBudget) -> None:
        self._tracer, self._parent, self._budget = tracer, parent, budget
        self._num_steps = {True: 0, False: 0}
        self._left = {True: MOST_CALLS, False: MOST_CALLS}

    def step(self, facts: StepFacts, first: AnyStepSpan | None) -> StepSpan | None:
        """Begin a step's span; None: this is not one to be told of. Arguments as of SequenceTrace."""
        self._num_steps[facts.is_prompt] = number = self._num_steps[facts.is_prompt] + 1
        if number & (number - 1):
            return None
        attributes: dict[str, str | int] = {
            "herd.step.kind": "prompt" if facts.is_prompt else "generate",
            "herd.step.number": number,
            "herd.step.sequences": facts.num_sequences,
            "herd.step.tokens": facts.num_tokens,
            "herd.sequence.tokens_before": facts.num_before,
            "herd.sequence.tokens": facts.num_own,
        }
        links = [Link(first.context)] if isinstance(first, StepSpan) else []
        span = self._tracer.start_span("step", self._parent, SpanKind.INTERNAL, attributes, links)
        return StepSpan(self._tracer, span, lambda: self._may_tell(facts.is_prompt))

    def _may_tell(self, is_prompt: bool) -> bool:
        if not self._left[is_prompt] or not self._budget.take():
            return False
        self._left[is_prompt] -= 1
        return True


class StepSpan:
    """A step's span, as router.trace.StepSpan.

    Args:
        tracer: makes spans.
        span: the step's.
        may_tell: takes a question from the budgets, and says whether there was one.
    """

    def __init__(self, tracer: Tracer, span: Span, may_tell: Callable[[], bool]) -> None:
        self._tracer, self._span, self._may_tell = tracer, span, may_tell
        self.context = span.get_span_context()
        """Names it, for links."""
        self._below = set_span_in_context(span)
        self._num_calls = self._num_untold = 0

    def call(self, name: str, layer: int, process: str, num_tokens: int) -> CallSpan | None:
        """Begin the span of a question to another process; None: it is only counted."""
        self._num_calls += 1
        if not self._may_tell():
            self._num_untold += 1
            return None
        attributes: dict[str, str | int] = {"herd.layer": layer, "herd.replica": process, "herd.tokens": num_tokens}
        return CallSpan(self._tracer, name, self._below, attributes)

    def end(self) -> None:
        """End it."""
        self._span.set_attribute("herd.step.calls", self._num_calls)
        if self._num_untold:
            self._span.set_attribute("herd.step.calls_without_span", self._num_untold)
        self._span.end()


class CallSpan:
    """The span of a question to another process, as router.trace.CallSpan. Any thread may end it.

    Args:
        tracer: makes spans.
        name: dispatch or attend.
        parent: the step's.
        attributes: to begin with.
    """

    def __init__(self, tracer: Tracer, name: str, parent: Context, attributes: dict[str, str | int]) -> None:
        self._began_ns = time.time_ns()
        self._span = tracer.start_span(name, parent, SpanKind.CLIENT, attributes, start_time=self._began_ns)

    @property
    def traceparent(self) -> str:
        """Return its name."""
        return traceparent(self._span)

    def answered(self, seconds: float, *, queue_us: int, compute_us: int) -> None:
        """End it with its answer, by part as `herd_dispatch_seconds` has them."""
        if not self._span.is_recording():
            return
        queue_s, compute_s = queue_us * 1e-6, compute_us * 1e-6
        set_parts(self._span, queue_s, compute_s)
        self._span.set_attribute("herd.dispatch.network_seconds", round(max(seconds - queue_s - compute_s, 0.0), 6))
        self._span.end(self._began_ns + int(seconds * _NS))

    def failed(self, error: ServingError) -> None:
        """End it as failed."""
        if self._span.is_recording():
            self._span.set_status(StatusCode.ERROR, error.reason)
            self._span.end()

    def dropped(self) -> None:
        """End it without an answer: another replica was faster, or the step was given up."""
        if self._span.is_recording():
            self._span.set_attribute("herd.dropped", True)
            self._span.end()


def set_parts(span: Span, queue_s: float, compute_s: float) -> None:
    """Say on a span what the process that answers waited and computed, in seconds."""
    span.set_attribute("herd.dispatch.queue_seconds", round(queue_s, 6))
    span.set_attribute("herd.dispatch.compute_seconds", round(compute_s, 6))
