"""Counts and measures what one front door does, and renders it in Prometheus' text format."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from cluster.choice import Choice
from cluster.cluster_gauges import Samples, cluster_gauges
from cluster.metrics import METRICS, Metric
from cluster.pool import LengthClass
from cluster.router_client import PlacementInfo, RouterLoad
from cluster.service_events import FinishReason
from cluster.version import herd_version
from protos.errors import DeadlineExceeded, InternalError, NoReplica

ConnectionFault = Literal["full", "handshake", "head", "framing", "pipeline", "malformed"]
"""Why a connection is closed that its client would have kept: there are too many, or what came over it."""
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ABORT, _ERROR = "abort", "error"
_BY_CLASS = ("herd_request_seconds", "herd_request_prompt_tokens", "herd_request_generation_tokens")
_FAILURES = (InternalError, NoReplica, DeadlineExceeded)
"""Of every code by which a server's failure is counted, one."""
_FIRST_TOKEN = "herd_time_to_first_token_seconds"


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassLoad:
    """What one front door has of one length class at one moment."""

    name: LengthClass
    num_sequences: int
    """Admitted and not ended."""
    num_in_line: int
    """Those of them that wait here for a router."""
    num_queued_prompt_tokens: int
    """Admitted and not computed."""


class FrontDoorMetrics:
    """The metrics of one front door, in a registry of their own. Not thread-safe beyond what prometheus_client is.

    Args:
        model_name: label of the metrics that vLLM's tools read.
        classes: length classes there are.
    """

    def __init__(self, model_name: str, classes: Sequence[LengthClass] = ("standard",)) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # series of their own, which nobody reads
        self._model_name = model_name
        self.registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for metric in METRICS:
            self._register(metric)
        self._gauges["herd_info"].labels(model_name, herd_version()).set(1)
        # Series that are there from the start: a rate is 0 then, and not nothing.
        for reason in (*get_args(FinishReason), _ABORT, _ERROR):
            self._counters["herd_sequences_total"].labels(reason)
        for each in _FAILURES:
            http, grpc = str(each.http_status), each.grpc_code.name
            for api, code in (("completions", http), ("chat", http), ("grpc", grpc)):
                self._counters["herd_requests_total"].labels(api, code)
        for fault in get_args(ConnectionFault):
            self._counters["herd_refused_connections_total"].labels(fault)
        for length_class in classes:
            for name in (*_BY_CLASS, _FIRST_TOKEN):
                self._histograms[name].labels(length_class)

    def _register(self, metric: Metric) -> None:
        name, text, labels = metric.name, metric.help, metric.labels
        if metric.retells is not None:
            source = (self._counters | self._histograms)[metric.retells]
            self.registry.register(_Retold(metric, source, self._model_name))
        elif metric.kind == "counter":
            self._counters[name] = Counter(name, text, labels, registry=self.registry)
        elif metric.kind == "gauge":
            self._gauges[name] = Gauge(name, text, labels, registry=self.registry)
        else:
            self._histograms[name] = Histogram(name, text, labels, buckets=metric.buckets, registry=self.registry)

    def count_request(self, api: str, code: str) -> None:
        """Count a request that ended.

        Args:
            api: completions, chat or grpc; other: refused at another path.
            code: HTTP status, or name of the gRPC status; for a stream that failed half-way, its error's.
        """
        self._counters["herd_requests_total"].labels(api, code).inc()

    def count_refused_connection(self, reason: ConnectionFault) -> None:
        """Count a connection that was closed though its client would have kept it."""
        self._counters["herd_refused_connections_total"].labels(reason).inc()

    def stopwatch(self, length_class: LengthClass, choices: Sequence[Choice], num_prompt_tokens: int) -> Stopwatch:
        """Start to measure a request that was just admitted.

        Args:
            length_class: of the request.
            choices: what it is to bring; looked at when it ends.
            num_prompt_tokens: of all its prompts, each prompt once.
        """
        duration, prompt, generation = (self._histograms[name].labels(length_class) for name in _BY_CLASS)
        prompt.observe(num_prompt_tokens)
        return Stopwatch(
            choices,
            tokens=self._counters["herd_generation_tokens_total"],
            sequences=self._counters["herd_sequences_total"],
            first_token=self._histograms[_FIRST_TOKEN].labels(length_class),
            inter_token=self._histograms["herd_inter_token_seconds"],
            duration=duration,
            generation=generation,
        )

    def count_prompt_tokens(self, num_tokens: int) -> None:
        """Count the prompt tokens of an accepted request."""
        self._counters["herd_prompt_tokens_total"].inc(num_tokens)

    def count_replay(self) -> None:
        """Count a sequence that went to another router."""
        self._counters["herd_replayed_sequences_total"].inc()

    def render(
        self,
        loads: Sequence[RouterLoad],
        classes: Sequence[ClassLoad],
        placement: PlacementInfo | None = None,
        *,
        num_experts: int = 0,
        is_draining: bool = False,
    ) -> bytes:
        """Return everything in Prometheus' text format.

        Args:
            loads: the routers' loads of this moment.
            classes: what this front door has of each length class.
            placement: where the experts are and which replicas there are; None: not known.
            num_experts: logical experts of the model.
            is_draining: whether this front door refuses new requests.
        """
        gauges = {
            **cluster_gauges(loads, placement, num_experts),
            **_of_classes(classes),
            **self._for_vllm(loads, classes),
        }
        gauges["herd_front_door_draining"] = {(): float(is_draining)}
        for name, samples in gauges.items():
            self._gauges[name].clear()  # what is gone must not linger
            for labels, value in samples.items():
                gauge = self._gauges[name]
                (gauge.labels(*labels) if labels else gauge).set(value)
        return generate_latest(self.registry)

    def _for_vllm(self, loads: Sequence[RouterLoad], classes: Sequence[ClassLoad]) -> dict[str, Samples]:
        kv_total = sum(each.load.kv_total_bytes for each in loads)
        kv_used = sum(each.load.kv_used_bytes for each in loads)
        waiting = sum(each.load.waiting for each in loads) + sum(each.num_in_line for each in classes)
        label = (self._model_name,)
        return {
            "vllm:num_requests_running": {label: sum(each.load.running for each in loads)},
            "vllm:num_requests_waiting": {label: waiting},
            "vllm:kv_cache_usage_perc": {label: kv_used / kv_total if kv_total else 0.0},
        }


def _of_classes(classes: Sequence[ClassLoad]) -> dict[str, Samples]:
    return {
        "herd_sequences_in_flight": {(): sum(each.num_sequences for each in classes)},
        "herd_sequences_in_line": {(each.name,): each.num_in_line for each in classes},
        "herd_admitted_prompt_tokens": {(each.name,): each.num_queued_prompt_tokens for each in classes},
    }


class _Retold(Collector):
    """Gives a metric's samples under another name, when they are asked for: measuring costs nothing more."""

    def __init__(self, metric: Metric, source: Counter | Histogram, model_name: str) -> None:
        self._metric, self._source, self._model_name = metric, source, model_name

    def collect(self) -> Iterator[Family]:
        """Yield the samples, those that differ in labels left out summed."""
        metric = self._metric
        family = Family(metric.name.removesuffix("_total"), metric.help, metric.kind)
        kept = {"le", *metric.labels}
        for told in self._source.collect():
            sums: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
            for sample in told.samples:
                key = sample.name, tuple(pair for pair in sample.labels.items() if pair[0] in kept)
                sums[key] = sums.get(key, 0.0) + sample.value
            for (name, labels), value in sums.items():
                suffix = name.removeprefix(told.name)
                family.add_sample(family.name + suffix, {"model_name": self._model_name, **dict(labels)}, value)
        yield family


class Stopwatch:
    """Measures one request's tokens as they come, and at the end of its context the request."""

    def __init__(
        self,
        choices: Sequence[Choice],
        *,
        tokens: Counter,
        sequences: Counter,
        first_token: Histogram,
        inter_token: Histogram,
        duration: Histogram,
        generation: Histogram,
    ) -> None:
        self._choices = choices
        self._tokens, self._sequences = tokens, sequences
        self._first_token, self._inter_token = first_token, inter_token
        self._duration, self._generation = duration, generation
        self._started = time.monotonic()
        self._has_token = False
        self._last: dict[int, float] = {}

    def tokens(self, choice: int, count: int) -> None:
        """Take note of tokens that came together for a choice."""
        if not count:
            return
        now = time.monotonic()
        self._tokens.inc(count)
        if not self._has_token:
            self._has_token = True
            self._first_token.observe(now - self._started)
        if choice in self._last:
            for _ in range(count):
                self._inter_token.observe((now - self._last[choice]) / count)
        self._last[choice] = now

    def __enter__(self) -> Stopwatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # One that is closed or cancelled has lost its client.
        unfinished = _ABORT if isinstance(error, asyncio.CancelledError | GeneratorExit) else _ERROR
        for choice in self._choices:
            self._sequences.labels(choice.finish_reason or unfinished).inc()
        self._duration.observe(time.monotonic() - self._started)
        self._generation.observe(sum(choice.num_tokens for choice in self._choices))
