"""What one front door counts and measures, in Prometheus' text format. METRICS is the whole surface."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from cluster.cluster_gauges import cluster_gauges
from cluster.router_client import PlacementInfo, RouterLoad

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its name is its contract."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets, in the unit of its name."""


_FIRST_TOKEN_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300)
_INTER_TOKEN_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)

METRICS = (
    Metric("herd_requests_total", "counter", "Requests ended at this front door.", ("api", "code")),
    Metric("herd_prompt_tokens_total", "counter", "Prompt tokens of accepted requests, each prompt once."),
    Metric("herd_generation_tokens_total", "counter", "Tokens generated for this front door's requests."),
    Metric(
        "herd_time_to_first_token_seconds",
        "histogram",
        "From accepting a request to its first token, by length class.",
        ("class",),
        buckets=_FIRST_TOKEN_S,
    ),
    Metric("herd_inter_token_seconds", "histogram", "Between two tokens of a choice.", buckets=_INTER_TOKEN_S),
    Metric("herd_replayed_sequences_total", "counter", "Sequences taken to another router because theirs was lost."),
    Metric("herd_sequences_in_flight", "gauge", "Sequences this front door has admitted and not ended."),
    Metric("herd_running_sequences", "gauge", "Sequences that hold a slot of a router.", ("replica",)),
    Metric("herd_waiting_sequences", "gauge", "Sequences a router accepted and has no slot for.", ("replica",)),
    Metric("herd_queued_prompt_tokens", "gauge", "Prompt tokens a router accepted and has not computed.", ("replica",)),
    Metric("herd_kv_used_bytes", "gauge", "Bytes of a router's KV cache in use.", ("replica",)),
    Metric("herd_kv_total_bytes", "gauge", "Bytes of a router's KV cache.", ("replica",)),
    Metric("herd_kv_cached_bytes", "gauge", "Bytes of KV cache kept for prompts that begin alike.", ("replica",)),
    Metric("herd_kv_host_bytes", "gauge", "Bytes of memory with pages the KV cache had no room for.", ("replica",)),
    Metric("herd_kv_disk_bytes", "gauge", "Bytes on disk with pages this memory had no room for.", ("replica",)),
    Metric("herd_kv_restored_host_bytes", "gauge", "Bytes of pages that came back from memory.", ("replica",)),
    Metric("herd_kv_restored_disk_bytes", "gauge", "Bytes of pages that came back from disk.", ("replica",)),
    Metric("herd_kv_restore_host_seconds", "gauge", "Seconds it took to bring them back from memory.", ("replica",)),
    Metric("herd_kv_restore_disk_seconds", "gauge", "Seconds it took to bring them back from disk.", ("replica",)),
    Metric("herd_kv_damaged_pages", "gauge", "Pages on disk that were not what had been written.", ("replica",)),
    Metric("herd_prefix_queried_tokens", "gauge", "Prompt tokens a router looked for in its cache.", ("replica",)),
    Metric("herd_prefix_cached_tokens", "gauge", "Those of them that it found.", ("replica",)),
    Metric("herd_prefix_hit_ratio", "gauge", "Found of looked for, since the router started; 1 is all.", ("replica",)),
    Metric(
        "herd_context_repaired_tokens",
        "gauge",
        "Tokens a router computed again because a context shard was lost.",
        ("replica",),
    ),
    Metric(
        "herd_context_free_tokens",
        "gauge",
        "Tokens that further sequences of a router may have on context shards; 0 without shards.",
        ("replica",),
    ),
    Metric(
        "herd_context_wanted_tokens",
        "gauge",
        "Tokens that a router's sequences may get on context shards, those that wait for room included.",
        ("replica",),
    ),
    Metric("herd_preemptions", "gauge", "Times a sequence made room for another in a router.", ("replica",)),
    Metric("herd_dispatch_shares", "gauge", "Shares of dispatches a router sent since its start.", ("replica",)),
    Metric("herd_dispatch_hedges", "gauge", "Shares it sent elsewhere as well, for an answer was late.", ("replica",)),
    Metric("herd_dispatch_resends", "gauge", "Shares it sent elsewhere instead, after a failure.", ("replica",)),
    Metric("herd_dispatch_probes", "gauge", "Shares it copied to ejected expert replicas.", ("replica",)),
    Metric("herd_ejections", "gauge", "Times a router began to pass over an expert replica.", ("replica",)),
    Metric("herd_ejected_replicas", "gauge", "Expert replicas a router passes over now.", ("replica",)),
    Metric(
        "herd_expert_tokens_per_second",
        "gauge",
        "Tokens of a logical expert at a replica that holds it, all layers together.",
        ("expert", "replica"),
    ),
    Metric("herd_expert_copies", "gauge", "Replicas that hold a logical expert.", ("expert",)),
    Metric("herd_expert_queue_seconds", "gauge", "Mean wait of a dispatch at an expert replica.", ("replica",)),
    Metric("herd_expert_compute_seconds", "gauge", "Mean computing of a dispatch there.", ("replica",)),
    Metric("herd_expert_spare_bytes", "gauge", "Bytes an expert replica has for more copies.", ("replica",)),
    Metric("vllm:num_requests_running", "gauge", "herd_running_sequences, summed, for vLLM's tools.", ("model_name",)),
    Metric("vllm:num_requests_waiting", "gauge", "herd_waiting_sequences, summed, for vLLM's tools.", ("model_name",)),
    Metric("vllm:kv_cache_usage_perc", "gauge", "KV cache in use, 1 is all, for vLLM's tools.", ("model_name",)),
)


class FrontDoorMetrics:
    """The metrics of one front door, in a registry of their own. Not thread-safe beyond what prometheus_client is.

    Args:
        model_name: label of the metrics that vLLM's tools read.
    """

    def __init__(self, model_name: str) -> None:
        self._model_name = model_name
        self.registry = CollectorRegistry()
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        for metric in METRICS:
            self._register(metric)

    def _register(self, metric: Metric) -> None:
        name, text, labels = metric.name, metric.help, metric.labels
        if metric.kind == "counter":
            self._counters[name] = Counter(name, text, labels, registry=self.registry)
        elif metric.kind == "gauge":
            self._gauges[name] = Gauge(name, text, labels, registry=self.registry)
        else:
            self._histograms[name] = Histogram(name, text, labels, buckets=metric.buckets, registry=self.registry)

    def count_request(self, api: str, code: str) -> None:
        """Count a request that ended.

        Args:
            api: completions, chat or grpc.
            code: HTTP status, or name of the gRPC status; for a stream that failed half-way, its error's.
        """
        self._counters["herd_requests_total"].labels(api, code).inc()

    def stopwatch(self, length_class: str) -> Stopwatch:
        """Start to measure a request that was just accepted.

        Args:
            length_class: standard or long.
        """
        return Stopwatch(
            self._counters["herd_generation_tokens_total"],
            self._histograms["herd_time_to_first_token_seconds"].labels(length_class),
            self._histograms["herd_inter_token_seconds"],
        )

    def count_prompt_tokens(self, num_tokens: int) -> None:
        """Count the prompt tokens of an accepted request."""
        self._counters["herd_prompt_tokens_total"].inc(num_tokens)

    def count_replay(self) -> None:
        """Count a sequence that went to another router."""
        self._counters["herd_replayed_sequences_total"].inc()

    def render(self, loads: Sequence[RouterLoad], num_sequences: int, placement: PlacementInfo | None = None) -> bytes:
        """Return everything in Prometheus' text format.

        Args:
            loads: the routers' loads of this moment.
            num_sequences: sequences in flight at this front door.
            placement: where the experts are; None: not known, or there are none.
        """
        self._gauges["herd_sequences_in_flight"].set(num_sequences)
        for name, samples in cluster_gauges(loads, placement).items():
            self._gauges[name].clear()  # what is gone must not linger
            for labels, value in samples.items():
                self._gauges[name].labels(*labels).set(value)
        kv_total = sum(each.load.kv_total_bytes for each in loads)
        kv_used = sum(each.load.kv_used_bytes for each in loads)
        summed = {
            "vllm:num_requests_running": sum(each.load.running for each in loads),
            "vllm:num_requests_waiting": sum(each.load.waiting for each in loads),
            "vllm:kv_cache_usage_perc": kv_used / kv_total if kv_total else 0.0,
        }
        for name, total in summed.items():
            self._gauges[name].labels(self._model_name).set(total)
        return generate_latest(self.registry)


class Stopwatch:
    """Measures one request's tokens as they come."""

    def __init__(self, tokens: Counter, first_token: Histogram, inter_token: Histogram) -> None:
        self._tokens, self._first_token, self._inter_token = tokens, first_token, inter_token
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
