"""Spans of a request in every process it comes to. Imported only where traces are wanted: OpenTelemetry is an extra.

    request           front door    from its first byte to its end      child of the client's span, if it names one
    `- sequence       router        from being accepted to its end      one for each router that had it
       `- step        router        some of those that computed it      step_spans.py says which
          |- dispatch router        from sending a share to its answer
          |  `- experts  expert replica   from reading the dispatch to its answer
          `- attend   router        the same for a layer's queries and a context shard
             `- context  context shard

Most steps have no spans. So a sequence's span also says in attributes how many answers of expert replicas its router
used meanwhile, and what they took.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from opentelemetry.propagators.textmap import Getter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, get_current_span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from cluster.step_spans import CallBudget, StepSpan, StepSpans, set_parts, traceparent
from cluster.version import herd_version
from protos.traced import TellAnswer, TracedAnswer
from router.request import Emit, Ended, EngineEvent, GenerationRequest, PromptDone, TokenChosen
from router.trace import StepFacts
from router.trace import StepSpan as AnyStepSpan
from router.transport.health import DispatchTimes

_CONTEXT = TraceContextTextMapPropagator()


class _Headers(Getter[Mapping[str, str]]):
    def get(self, carrier: Mapping[str, str], key: str) -> list[str] | None:
        return [carrier[key]] if key in carrier else None

    def keys(self, carrier: Mapping[str, str]) -> list[str]:
        return list(carrier)


class Tracing:
    """Makes a process' spans.

    Args:
        processor: takes them when they end.
        process: front door, router, experts or context.
        sample: share of requests that are traced, of those whose client does not say; 0 to 1.
    """

    def __init__(self, processor: SpanProcessor, process: str, sample: float) -> None:
        resource = Resource.create(
            {"service.name": "herd", "service.version": herd_version(), "herd.process": process},
        )
        self._provider = TracerProvider(sampler=ParentBased(TraceIdRatioBased(sample)), resource=resource)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("herd")
        self._budget = CallBudget()

    def request(self, api: str, request_id: str, headers: Mapping[str, str]) -> RequestSpan:
        """Begin a request's span.

        Args:
            api: completions, chat or grpc.
            request_id: the request's name.
            headers: the client's, names in lower case; `traceparent` and `tracestate` are looked at.
        """
        parent = _CONTEXT.extract(headers, getter=_Headers())
        attributes = {"herd.request_id": request_id, "herd.api": api}
        return RequestSpan(self._tracer.start_span("request", parent, SpanKind.SERVER, attributes))

    def sequence(
        self, request: GenerationRequest, replica_id: str, times: Callable[[], DispatchTimes | None]
    ) -> SequenceSpan | None:
        """Begin a sequence's span; None where its request is not traced.

        Args:
            request: the sequence.
            replica_id: the router.
            times: tells the answers of expert replicas that the router has used so far.
        """
        if not request.traceparent:
            return None
        attributes: dict[str, str | int] = {
            "herd.request_id": request.request_id,
            "herd.router": replica_id,
            "gen_ai.usage.input_tokens": len(request.prompt_ids),
        }
        parent = _CONTEXT.extract({"traceparent": request.traceparent})
        span = self._tracer.start_span("sequence", parent, SpanKind.SERVER, attributes)
        return SequenceSpan(span, times, StepSpans(self._tracer, set_span_in_context(span), self._budget))

    def answers(self, name: str, replica_id: str) -> TellAnswer:
        """Return what makes spans of a replica's answers; a message that names none, or nonsense, gets none.

        Args:
            name: experts or context.
            replica_id: the replica.
        """

        def tell(answer: TracedAnswer) -> None:
            parent = _CONTEXT.extract({"traceparent": answer.traceparent})
            if not get_current_span(parent).get_span_context().trace_flags.sampled:
                return
            ended_ns = time.time_ns()
            attributes: dict[str, str | int] = {
                "herd.layer": answer.layer,
                "herd.replica": replica_id,
                "herd.tokens": answer.num_tokens,
            }
            began_ns = ended_ns - int(answer.seconds * 1e9)
            span = self._tracer.start_span(name, parent, SpanKind.SERVER, attributes, start_time=began_ns)
            set_parts(span, answer.queue_s, answer.compute_s)
            if answer.error is not None:
                span.set_status(StatusCode.ERROR, answer.error.reason)
            span.end(ended_ns)

        return tell


class RequestSpan:
    """A request's span at the front door."""

    def __init__(self, span: Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        """Return what spans of other processes name as their parent; empty: the request is not traced."""
        return traceparent(self._span) if self._span.is_recording() else ""

    @property
    def trace_id(self) -> str | None:
        """Return what collectors find the request's trace by; None: it is not traced."""
        return f"{self._span.get_span_context().trace_id:032x}" if self._span.is_recording() else None

    def end(self, code: str, *, failed: bool, num_prompt_tokens: int | None, num_tokens: int | None) -> None:
        """End it.

        Args:
            code: HTTP status, or name of the gRPC status.
            failed: whether that is the server's failure.
            num_prompt_tokens: of all prompts; None: it was refused before that was known.
            num_tokens: generated, all choices together; None, likewise.
        """
        self._span.set_attribute("herd.code", code)
        if num_prompt_tokens is not None:
            self._span.set_attribute("gen_ai.usage.input_tokens", num_prompt_tokens)
        if num_tokens is not None:
            self._span.set_attribute("gen_ai.usage.output_tokens", num_tokens)
        if failed:
            self._span.set_status(StatusCode.ERROR)
        self._span.end()


class SequenceSpan:
    """A sequence's span at a router. `emit` and `step` may be called from another thread than the rest."""

    def __init__(self, span: Span, times: Callable[[], DispatchTimes | None], steps: StepSpans) -> None:
        self._span, self._times, self._steps = span, times, steps
        known = times()
        self._before = None if known is None else replace(known)
        self._num_tokens = 0

    def watching(self, emit: Emit) -> Emit:
        """Return what takes note of a sequence's events and hands them on."""

        def watch(event: EngineEvent) -> None:
            match event:
                case PromptDone():
                    self._span.add_event("prompt computed", {"herd.cached_tokens": event.num_cached})
                case TokenChosen():
                    self._num_tokens += 1
                    if self._num_tokens == 1:
                        self._span.add_event("first token")
                case Ended(error=None):
                    self._span.set_attribute("gen_ai.response.finish_reasons", [event.reason])
                case Ended(error=error) if error is not None:
                    self._span.set_status(StatusCode.ERROR, error.reason)
            emit(event)

        return watch

    def step(self, facts: StepFacts, first: AnyStepSpan | None) -> StepSpan | None:
        """Begin the span of a step; None: this one has none. See router.trace.SequenceTrace."""
        return self._steps.step(facts, first)

    def end(self) -> None:
        """End it."""
        self._span.set_attribute("gen_ai.usage.output_tokens", self._num_tokens)
        after = self._times()
        if self._before is not None and after is not None:
            before = self._before.parts()
            self._span.set_attribute("herd.dispatch.answers", after.answers - self._before.answers)
            for part, seconds in after.parts().items():
                self._span.set_attribute(f"herd.dispatch.{part}_seconds", round(seconds - before[part], 6))
        self._span.end()
