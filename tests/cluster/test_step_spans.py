"""Spans of steps, of what they ask expert replicas and context shards, and of the answers there."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager

import pytest
import torch
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from cluster import step_spans
from cluster.step_spans import CallBudget
from cluster.tracing import SequenceSpan, Tracing
from experts.server import ExpertServer
from experts.weights import ExpertWeights
from models.checkpoint import open_checkpoint
from models.llama4.decoder import load_decoder
from protos.errors import DeadlineExceeded
from protos.traced import TracedAnswer
from router.engine import Engine
from router.limits import EngineLimits
from router.placement import ExpertHolder, Placement
from router.request import GenerationRequest
from router.trace import StepFacts
from router.transport.grpc import GrpcTransport
from tests.models.checkpoint_files import write_hf
from tests.router.context_shards.live_shards import sharded_engine, start_shard
from tests.router.local_engine import GREEDY, WAIT_S, LocalEngine, Stream

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED = f"00-{TRACE}-00f067aa0ba902b7-01"
LAYERS = (1, 3)
"""Of the tiny model, those with experts."""


class Spans:
    """Spans of several processes, here of one."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()

    def of(self, process: str) -> Tracing:
        return Tracing(SimpleSpanProcessor(self._exporter), process, 0.0)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def below(self, span: ReadableSpan) -> list[ReadableSpan]:
        ended = self._exporter.get_finished_spans()
        return [each for each in ended if each.parent is not None and each.parent.span_id == span.context.span_id]


@pytest.fixture
def spans() -> Spans:
    return Spans()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_hf(tmp_path_factory.mktemp("tiny"))


@contextmanager
def split_engine(folder, spans: Spans | None):
    """Run an engine whose experts are behind two servers, each of them traced if the router is."""
    checkpoint = open_checkpoint(folder)
    with ExitStack() as stack:
        holders = []
        for replica_id, expert_ids in (("left", (0, 1)), ("right", (2, 3))):
            held = ExpertWeights.load(checkpoint, expert_ids, torch.float32)
            trace = None if spans is None else spans.of("experts").answers("experts", replica_id)
            server = ExpertServer(held, replica_id=replica_id, trace=trace)
            server.start()
            stack.callback(server.stop)
            holders.append(ExpertHolder(replica_id=replica_id, address=server.address, expert_ids=expert_ids))
        transport = GrpcTransport(router_id="router", fingerprint=checkpoint.fingerprint)
        stack.callback(transport.close)
        transport.update(Placement(version=1, holders=tuple(holders)))
        assert transport.wait_ready(range(4), WAIT_S)
        limits = EngineLimits(context_length=128, kv_bytes=10_000_000, slots=4, step_tokens=16)
        engine = Engine(load_decoder(checkpoint, dtype=torch.float32), transport, limits)
        engine.start()
        stack.callback(engine.stop)
        yield engine


def traced(tracing: Tracing, name: str = "a") -> tuple[GenerationRequest, SequenceSpan]:
    """Return a request of 20 + 6 tokens, which take two steps and then one each, and its span."""
    request = GenerationRequest(
        request_id=name, prompt_ids=tuple(range(5, 25)), max_tokens=6, sampling=GREEDY, traceparent=SAMPLED
    )
    span = tracing.sequence(request, "router", lambda: None)
    assert span is not None
    return request, span


def run(engine: Engine, request: GenerationRequest, span: SequenceSpan | None) -> list[int]:
    stream = Stream()
    engine.submit(request, stream, span)
    tokens = stream.tokens()
    if span is not None:
        engine.stop()  # a step's span ends after its tokens were told
        span.end()
    return tokens


def test_a_traced_sequences_steps_are_told_of_call_by_call_on_both_ends(folder, spans):
    request, span = traced(spans.of("router"))
    with split_engine(folder, spans) as engine:
        run(engine, request, span)
    [sequence] = spans.named("sequence")
    steps = spans.below(sequence)
    assert [(step.attributes["herd.step.kind"], step.attributes["herd.step.number"]) for step in steps] == [
        ("prompt", 1),
        ("prompt", 2),
        ("generate", 1),
        ("generate", 2),
        ("generate", 4),
    ], "of two and five"
    assert dict(steps[1].attributes) == {
        "herd.step.kind": "prompt",
        "herd.step.number": 2,
        "herd.step.sequences": 1,
        "herd.step.tokens": 4,
        "herd.sequence.tokens_before": 16,
        "herd.sequence.tokens": 4,
        "herd.step.calls": len(spans.below(steps[1])),
    }
    for step in steps:
        calls = spans.below(step)
        assert {call.attributes["herd.layer"] for call in calls} == set(LAYERS)
        for layer in LAYERS:
            asked = [call for call in calls if call.attributes["herd.layer"] == layer]
            assert sum(call.attributes["herd.tokens"] for call in asked) == step.attributes["herd.step.tokens"]
        for call in calls:
            [answer] = spans.below(call)
            assert (call.name, answer.name) == ("dispatch", "experts")
            for name in ("herd.layer", "herd.replica", "herd.tokens", "herd.dispatch.compute_seconds"):
                assert answer.attributes[name] == call.attributes[name], name
            assert call.attributes["herd.dispatch.compute_seconds"] > 0
            assert call.attributes["herd.dispatch.network_seconds"] > 0
    assert {f"{each.context.trace_id:032x}" for each in spans.named("experts")} == {TRACE}


def test_what_is_not_traced_names_no_span_and_computes_the_same(folder, spans):
    request, span = traced(spans.of("router"))
    with split_engine(folder, spans) as engine:
        told = run(engine, request, None)
        assert spans.named("experts") == spans.named("step") == []
        assert run(engine, request, span) == told


def test_a_replica_that_makes_no_spans_computes_for_a_router_that_does(folder, spans):
    request, span = traced(spans.of("router"))
    with split_engine(folder, None) as engine:
        run(engine, request, span)
    assert len(spans.named("dispatch")) == sum(step.attributes["herd.step.calls"] for step in spans.named("step"))


def test_a_step_of_two_traced_sequences_is_told_of_once_and_the_other_links_to_it(spans):
    tracing = spans.of("router")
    facts = StepFacts(num_before=0, num_own=4, is_prompt=True, num_sequences=2, num_tokens=8)
    (_, one), (_, other) = traced(tracing), traced(tracing, "b")
    first = one.step(facts, None)
    second = other.step(facts, first)
    first.end()
    second.end()
    linked, links = spans.named("step")
    assert [link.context.span_id for link in links.links] == [linked.context.span_id]


def test_most_steps_are_not_told_of_however_long_a_sequence_is(spans):
    _, span = traced(spans.of("router"))
    facts = StepFacts(num_before=0, num_own=1, is_prompt=False, num_sequences=1, num_tokens=1)
    told = [number for number in range(1, 10_001) if span.step(facts, None) is not None]
    assert told == [2**power for power in range(14)]


def test_a_trace_tells_of_so_many_calls_and_counts_the_others(spans, monkeypatch):
    monkeypatch.setattr(step_spans, "MOST_CALLS", 3)
    _, span = traced(spans.of("router"))
    facts = StepFacts(num_before=0, num_own=1, is_prompt=False, num_sequences=1, num_tokens=1)
    for is_prompt in (False, True):
        step = span.step(StepFacts(num_before=0, num_own=1, is_prompt=is_prompt, num_sequences=1, num_tokens=1), None)
        calls = [step.call("dispatch", layer, "left", 1) for layer in range(5)]
        assert [call is not None for call in calls] == [True] * 3 + [False] * 2
        step.end()
    for step in spans.named("step"):
        assert (step.attributes["herd.step.calls"], step.attributes["herd.step.calls_without_span"]) == (5, 2)
    assert span.step(facts, None).call("dispatch", 1, "left", 1) is None, "the budget is the sequence's"


def test_a_process_tells_of_so_many_calls_a_second_whoever_asks_for_traces():
    now = [0.0]
    budget = CallBudget(burst=3, per_s=2.0, clock=lambda: now[0])
    assert [budget.take() for _ in range(4)] == [True, True, True, False]
    now[0] = 0.5
    assert [budget.take() for _ in range(2)] == [True, False]
    now[0] = 1000.0
    assert [budget.take() for _ in range(4)] == [True, True, True, False]


def test_context_shards_tell_of_their_answers(spans):
    request, span = traced(spans.of("router"))
    shard = start_shard(shard_id="shard", trace=spans.of("context").answers("context", "shard"))
    with sharded_engine([shard]) as (local, _):
        assert isinstance(local, LocalEngine)
        run(local.engine, request, span)
    steps = spans.named("step")
    assert len(steps) == 5
    for step in steps:
        [call] = spans.below(step)
        [answer] = spans.below(call)
        assert (call.name, answer.name) == ("attend", "context")
        assert call.attributes["herd.replica"] == answer.attributes["herd.replica"] == "shard"
        assert call.attributes["herd.tokens"] == answer.attributes["herd.tokens"]
        assert answer.attributes["herd.dispatch.compute_seconds"] > 0


@pytest.mark.parametrize("named", ["", "nonsense", SAMPLED.removesuffix("1") + "0", "x" * 100_000])
def test_a_message_that_names_no_sampled_span_gets_none(spans, named):
    answer = TracedAnswer(traceparent=named, layer=1, num_tokens=2, seconds=0.1)
    spans.of("experts").answers("experts", "left")(answer)
    assert spans.named("experts") == []


def test_an_answer_that_is_an_error_marks_its_span(spans):
    late = DeadlineExceeded("late")
    answer = TracedAnswer(traceparent=SAMPLED, layer=1, num_tokens=2, seconds=0.25, queue_s=0.25, error=late)
    spans.of("experts").answers("experts", "left")(answer)
    [span] = spans.named("experts")
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "DEADLINE_EXCEEDED")
    assert span.end_time - span.start_time == 250_000_000
