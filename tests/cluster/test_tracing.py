"""Spans of a request at the front door and of its sequences at routers."""

import ast
import asyncio
import logging
import time
from contextlib import aclosing

import grpc
import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from cluster.carrier_sender import CarrierSender
from cluster.config import TraceSettings
from cluster.logs import PACKAGES
from cluster.service import InferenceService
from cluster.trace_start import start_tracing
from cluster.tracing import Tracing
from protos.errors import NoReplica
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub
from router.request import Ended, GenerationRequest
from router.step_watch import StepWatch
from router.transport.health import DispatchTimes
from tests.cluster.live_front_door import LiveFrontDoor
from tests.cluster.scripted_router import ScriptedRouter, fails, says
from tests.cluster.test_metrics import wait_until
from tests.conftest import ROOT
from tests.router.local_engine import local_engine

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACING = {"opentelemetry", "cluster.tracing", "cluster.step_spans"}
SAMPLED, UNSAMPLED = f"00-{TRACE}-00f067aa0ba902b7-01", f"00-{TRACE}-00f067aa0ba902b7-00"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def tracing_to(spans, sample: float = 0.0) -> Tracing:
    return Tracing(SimpleSpanProcessor(spans), "test", sample)


def finished(spans, count: int = 1) -> tuple:
    """Return the spans that ended, once there are so many: a client has its answer before."""
    give_up_at = time.monotonic() + 20
    while len(found := spans.get_finished_spans()) < count and time.monotonic() < give_up_at:
        time.sleep(0.005)
    return found


@pytest.fixture
def router() -> ScriptedRouter:
    return ScriptedRouter(says(72, 101))


@pytest.fixture
def traced_door(router, text_model, spans):
    with LiveFrontDoor(InferenceService(text_model, router, tracing=tracing_to(spans))) as live:
        yield live


def test_a_request_has_a_span_below_its_clients_and_its_sequences_name_it(traced_door, router, spans):
    traced_door.post("/v1/completions", {"prompt": [5, 6], "n": 2}, traceparent=SAMPLED, x_request_id="mine")
    [span] = finished(spans)
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, "00f067aa0ba902b7")
    assert dict(span.attributes) == {
        "herd.request_id": "mine",
        "herd.api": "completions",
        "herd.code": "200",
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 4,
    }
    below = f"00-{TRACE}-{span.context.span_id:016x}-01"
    assert [request.traceparent for request in router.requests] == [below, below]


def test_a_traced_requests_line_in_the_log_names_its_trace(traced_door, spans, caplog):
    caplog.set_level(logging.INFO, "cluster")
    traced_door.post("/v1/completions", {"prompt": [5]}, traceparent=UNSAMPLED)
    traced_door.post("/v1/completions", {"prompt": [5]}, traceparent=SAMPLED)
    finished(spans)
    assert wait_until(lambda: len(caplog.records) == 2)
    assert [record.fields.get("trace_id") for record in caplog.records] == [None, TRACE]


def test_a_grpc_calls_metadata_name_its_parent(traced_door, spans):
    request = pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5, 6]))
    with grpc.insecure_channel(traced_door.grpc_address) as channel:
        list(InferenceServiceStub(channel).Generate(request, metadata=(("traceparent", SAMPLED),), timeout=20))
    [span] = finished(spans)
    assert f"{span.context.trace_id:032x}" == TRACE
    assert (span.attributes["herd.api"], span.attributes["herd.code"]) == ("grpc", "OK")


@pytest.mark.parametrize("traceparent", [UNSAMPLED, "nonsense", ""])
def test_what_is_not_sampled_leaves_nothing_and_asks_routers_for_nothing(traced_door, router, spans, traceparent):
    traced_door.post("/v1/completions", {"prompt": [5]}, traceparent=traceparent)
    traced_door.post("/v1/completions", {"prompt": [5]}, traceparent=SAMPLED)
    assert len(finished(spans)) == 1, "of the second"
    assert router.requests[0].traceparent == ""


def test_a_servers_failure_marks_the_span_and_a_clients_does_not(traced_door, router, spans):
    traced_door.post("/v1/completions", {"prompt": 5}, traceparent=SAMPLED)
    router.script = fails(NoReplica("gone"))
    traced_door.post("/v1/completions", {"prompt": [5]}, traceparent=SAMPLED)
    refused, failed = finished(spans, 2)
    assert (refused.attributes["herd.code"], refused.status.status_code) == ("400", StatusCode.UNSET)
    assert (failed.attributes["herd.code"], failed.status.status_code) == ("503", StatusCode.ERROR)


def test_a_sequence_has_a_span_that_says_what_experts_took_meanwhile(spans):
    seen = iter([DispatchTimes(answers=10, total_s=1.0), DispatchTimes(answers=34, total_s=1.75, compute_s=0.5)])

    async def generate(engine) -> None:
        watch = StepWatch(engine, 3600)
        sender = CarrierSender(engine, watch, "router-1", tracing=tracing_to(spans), times=lambda: next(seen))
        request = GenerationRequest(request_id="a-0", prompt_ids=(5, 6), max_tokens=3, traceparent=SAMPLED)
        async with aclosing(sender.carry("door")) as events, aclosing(sender.generate(request, "door")) as calls:
            await anext(events)
            await anext(calls)
            while not any(isinstance(each, Ended) for _, told in await anext(events) for each in told):
                pass

    with local_engine() as local:
        asyncio.run(generate(local.engine))
    [span] = [each for each in spans.get_finished_spans() if each.name == "sequence"]
    assert f"{span.context.trace_id:032x}" == TRACE
    assert [event.name for event in span.events] == ["prompt computed", "first token"]
    assert dict(span.attributes) == {
        "herd.request_id": "a-0",
        "herd.router": "router-1",
        "gen_ai.usage.input_tokens": 2,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.response.finish_reasons": ("length",),
        "herd.dispatch.answers": 24,
        "herd.dispatch.queue_seconds": 0.0,
        "herd.dispatch.compute_seconds": 0.5,
        "herd.dispatch.network_seconds": 0.25,
    }


def test_traces_that_are_off_import_nothing():
    assert start_tracing(TraceSettings(), "router") is None
    at_once = {path.name: imported_at_once(path) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert {name for name, modules in at_once.items() if modules & TRACING} == {"tracing.py", "step_spans.py"}


def imported_at_once(path) -> set[str]:
    """Return what a file imports when it is imported: its modules, and the packages they are in."""
    text = path.read_text()
    body = ast.parse(text).body if any(name in text for name in TRACING) else []
    named = [each.module or "" for each in body if isinstance(each, ast.ImportFrom)]
    named += [alias.name for each in body if isinstance(each, ast.Import) for alias in each.names]
    return {name for each in named for name in (each, each.partition(".")[0])}
