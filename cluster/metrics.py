"""METRICS: every metric that a front door serves at `/metrics`. docs/metrics.md is generated from it.

What measures them is in `front_door_metrics.py` (requests) and `cluster_gauges.py` (routers, experts, replicas).

A gauge that `grows` counts since the start of its replica, or of the directory, and its series goes with that: rate()
applies to it. It is no counter because other processes than the one that is scraped count, and every front door tells
the same: take it from one of them (`max by (replica)`), do not add.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["counter", "gauge", "histogram"]
Unit = Literal[
    "requests",
    "connections",
    "sequences",
    "tokens",
    "tokens/s",
    "seconds",
    "bytes",
    "pages",
    "ratio",
    "shares",
    "times",
    "replicas",
    "nodes",
    "machines",
]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: its name is its contract."""

    name: str
    kind: Kind
    unit: Unit
    """Of its value, or of what a histogram's buckets bound."""
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds of a histogram's buckets, in its unit."""
    grows: bool = False
    """Whether a gauge counts since the start of whom it is of."""
    retells: str | None = None
    """The metric whose samples this one gives under another name, summed over the labels that it does not have."""


# Of prompts of millions of tokens the first token takes as long as whole requests of others do.
_FIRST_TOKEN_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600)
# Close together where objectives are: a quantile is known as well as the bucket that it falls into is narrow.
_INTER_TOKEN_S = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1, 2, 5)
_REQUEST_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)
_TOKENS = (8, 32, 128, 512, 2048, 8192, 32_768, 131_072, 524_288, 2_097_152, 10_485_760)
_CLASS, _REPLICA, _MODEL = ("class",), ("replica",), ("model_name",)

_OF_REQUESTS = (
    Metric("herd_info", "gauge", "replicas", "1; its labels say what this front door serves.", ("model", "version")),
    Metric(
        "herd_requests_total",
        "counter",
        "requests",
        "Requests ended at this front door; api is other for those without a good key at other paths.",
        ("api", "code"),
    ),
    Metric(
        "herd_refused_connections_total",
        "counter",
        "connections",
        "Connections over HTTP closed because there are too many, or for what came over them.",
        ("reason",),
    ),
    Metric(
        "herd_request_seconds",
        "histogram",
        "seconds",
        "From admitting a request to its end, however it ended, by length class.",
        _CLASS,
        buckets=_REQUEST_S,
    ),
    Metric(
        "herd_request_prompt_tokens",
        "histogram",
        "tokens",
        "Prompt tokens of an admitted request, each prompt once.",
        _CLASS,
        buckets=_TOKENS,
    ),
    Metric(
        "herd_request_generation_tokens",
        "histogram",
        "tokens",
        "Tokens generated for a request, all choices together, when it ends.",
        _CLASS,
        buckets=_TOKENS,
    ),
    Metric(
        "herd_sequences_total",
        "counter",
        "sequences",
        "Sequences of admitted requests that ended: stop, length, abort (their client left) or error.",
        ("finished_reason",),
    ),
    Metric("herd_prompt_tokens_total", "counter", "tokens", "Prompt tokens of accepted requests, each prompt once."),
    Metric("herd_generation_tokens_total", "counter", "tokens", "Tokens generated for this front door's requests."),
    Metric(
        "herd_time_to_first_token_seconds",
        "histogram",
        "seconds",
        "From accepting a request to its first token, by length class.",
        _CLASS,
        buckets=_FIRST_TOKEN_S,
    ),
    Metric(
        "herd_inter_token_seconds", "histogram", "seconds", "Between two tokens of a choice.", buckets=_INTER_TOKEN_S
    ),
    Metric(
        "herd_replayed_sequences_total",
        "counter",
        "sequences",
        "Sequences taken to another router because theirs was lost.",
    ),
    Metric("herd_sequences_in_flight", "gauge", "sequences", "Sequences this front door has admitted and not ended."),
    Metric(
        "herd_sequences_in_line",
        "gauge",
        "sequences",
        "Those of them that wait in this front door for a router with room, by length class.",
        _CLASS,
    ),
    Metric(
        "herd_admitted_prompt_tokens",
        "gauge",
        "tokens",
        "Prompt tokens this front door has admitted and no router has computed, by length class.",
        _CLASS,
    ),
    Metric("herd_front_door_draining", "gauge", "replicas", "1 while this front door refuses new requests, 0 else."),
)

_OF_ROUTERS = (
    Metric("herd_running_sequences", "gauge", "sequences", "Sequences that hold a slot of a router.", _REPLICA),
    Metric(
        "herd_waiting_sequences", "gauge", "sequences", "Sequences a router accepted and has no slot for.", _REPLICA
    ),
    Metric("herd_slots", "gauge", "sequences", "Most sequences a router generates at once.", _REPLICA),
    Metric(
        "herd_queued_prompt_tokens",
        "gauge",
        "tokens",
        "Prompt tokens a router accepted and has not computed.",
        _REPLICA,
    ),
    Metric("herd_generated_tokens", "gauge", "tokens", "Tokens a router generated.", _REPLICA, grows=True),
    Metric("herd_kv_used_bytes", "gauge", "bytes", "Bytes of a router's KV cache in use.", _REPLICA),
    Metric("herd_kv_total_bytes", "gauge", "bytes", "Bytes of a router's KV cache.", _REPLICA),
    Metric(
        "herd_kv_pages",
        "gauge",
        "pages",
        "Pages of a router's KV cache, of global and of local layers, by state: used by sequences, kept for prompts "
        "that begin alike, or free.",
        ("replica", "layers", "state"),
    ),
    Metric("herd_kv_cached_bytes", "gauge", "bytes", "Bytes of KV cache kept for prompts that begin alike.", _REPLICA),
    Metric(
        "herd_kv_host_bytes", "gauge", "bytes", "Bytes of memory with pages the KV cache had no room for.", _REPLICA
    ),
    Metric("herd_kv_disk_bytes", "gauge", "bytes", "Bytes on disk with pages this memory had no room for.", _REPLICA),
    Metric(
        "herd_kv_restored_host_bytes",
        "gauge",
        "bytes",
        "Bytes of pages that came back from memory.",
        _REPLICA,
        grows=True,
    ),
    Metric(
        "herd_kv_restored_disk_bytes",
        "gauge",
        "bytes",
        "Bytes of pages that came back from disk.",
        _REPLICA,
        grows=True,
    ),
    Metric(
        "herd_kv_restore_host_seconds",
        "gauge",
        "seconds",
        "Seconds it took to bring them back from memory.",
        _REPLICA,
        grows=True,
    ),
    Metric(
        "herd_kv_restore_disk_seconds",
        "gauge",
        "seconds",
        "Seconds it took to bring them back from disk.",
        _REPLICA,
        grows=True,
    ),
    Metric(
        "herd_kv_damaged_pages",
        "gauge",
        "times",
        "Pages on disk that were not what had been written.",
        _REPLICA,
        grows=True,
    ),
    Metric(
        "herd_prefix_queried_tokens",
        "gauge",
        "tokens",
        "Prompt tokens a router looked for in its cache.",
        _REPLICA,
        grows=True,
    ),
    Metric("herd_prefix_cached_tokens", "gauge", "tokens", "Those of them that it found.", _REPLICA, grows=True),
    Metric(
        "herd_prefix_hit_ratio", "gauge", "ratio", "Found of looked for, since the router started; 1 is all.", _REPLICA
    ),
    Metric(
        "herd_context_repaired_tokens",
        "gauge",
        "tokens",
        "Tokens a router computed again because a context shard was lost.",
        _REPLICA,
        grows=True,
    ),
    Metric(
        "herd_context_free_tokens",
        "gauge",
        "tokens",
        "Tokens that further sequences of a router may have on context shards; 0 without shards.",
        _REPLICA,
    ),
    Metric(
        "herd_context_wanted_tokens",
        "gauge",
        "tokens",
        "Tokens that a router's sequences may get on context shards, those that wait for room included.",
        _REPLICA,
    ),
    Metric(
        "herd_preemptions",
        "gauge",
        "times",
        "Times a sequence made room for another in a router.",
        _REPLICA,
        grows=True,
    ),
)

_OF_DISPATCHES = (
    Metric(
        "herd_dispatch_shares",
        "gauge",
        "shares",
        "Shares of dispatches a router sent since its start.",
        _REPLICA,
        grows=True,
    ),
    Metric(
        "herd_dispatch_hedges",
        "gauge",
        "shares",
        "Shares it sent elsewhere as well, for an answer was late.",
        _REPLICA,
        grows=True,
    ),
    Metric(
        "herd_dispatch_resends",
        "gauge",
        "shares",
        "Shares it sent elsewhere instead, after a failure.",
        _REPLICA,
        grows=True,
    ),
    Metric(
        "herd_dispatch_probes", "gauge", "shares", "Shares it copied to ejected expert replicas.", _REPLICA, grows=True
    ),
    Metric("herd_dispatch_answers", "gauge", "shares", "Answers to shares that it used.", _REPLICA, grows=True),
    Metric(
        "herd_dispatch_seconds",
        "gauge",
        "seconds",
        "From sending a share to its answer, summed over those answers, by part: queue and compute at the expert "
        "replica, network for all else.",
        ("replica", "part"),
        grows=True,
    ),
    Metric(
        "herd_ejections", "gauge", "times", "Times a router began to pass over an expert replica.", _REPLICA, grows=True
    ),
    Metric("herd_ejected_replicas", "gauge", "replicas", "Expert replicas a router passes over now.", _REPLICA),
)

_OF_REPLICAS = (
    Metric(
        "herd_expert_tokens_per_second",
        "gauge",
        "tokens/s",
        "Tokens of a logical expert at a replica that holds it, all layers together.",
        ("expert", "replica"),
    ),
    Metric(
        "herd_expert_copies",
        "gauge",
        "replicas",
        "Replicas that hold a logical expert; at 0, whoever needs it waits.",
        ("expert",),
    ),
    Metric("herd_expert_machines", "gauge", "machines", "Machines that these replicas are on.", ("expert",)),
    Metric("herd_expert_queue_seconds", "gauge", "seconds", "Mean wait of a dispatch at an expert replica.", _REPLICA),
    Metric("herd_expert_compute_seconds", "gauge", "seconds", "Mean computing of a dispatch there.", _REPLICA),
    Metric("herd_expert_spare_bytes", "gauge", "bytes", "Bytes an expert replica has for more copies.", _REPLICA),
    Metric(
        "herd_replicas",
        "gauge",
        "replicas",
        "Replicas of a deployment by state: ready, starting, draining, silent or failed.",
        ("deployment", "state"),
    ),
    Metric(
        "herd_departures",
        "gauge",
        "replicas",
        "Expert replicas and context shards that went, by how: left as they were told to, or lost, for no heartbeat "
        "came any more.",
        ("how",),
        grows=True,
    ),
    Metric("herd_draining_nodes", "gauge", "nodes", "Ray nodes that drain now, whoever told them to."),
    Metric("herd_drained_nodes", "gauge", "nodes", "Ray nodes that began to drain.", grows=True),
)

_FOR_VLLM = (
    Metric("vllm:num_requests_running", "gauge", "sequences", "herd_running_sequences of all routers.", _MODEL),
    Metric(
        "vllm:num_requests_waiting",
        "gauge",
        "sequences",
        "herd_waiting_sequences of all routers, and herd_sequences_in_line of this front door.",
        _MODEL,
    ),
    Metric("vllm:kv_cache_usage_perc", "gauge", "ratio", "KV cache in use; 1 is all.", _MODEL),
    Metric(
        "vllm:time_to_first_token_seconds",
        "histogram",
        "seconds",
        "As herd_time_to_first_token_seconds.",
        _MODEL,
        _FIRST_TOKEN_S,
        retells="herd_time_to_first_token_seconds",
    ),
    Metric(
        "vllm:inter_token_latency_seconds",
        "histogram",
        "seconds",
        "As herd_inter_token_seconds.",
        _MODEL,
        _INTER_TOKEN_S,
        retells="herd_inter_token_seconds",
    ),
    Metric(
        "vllm:e2e_request_latency_seconds",
        "histogram",
        "seconds",
        "As herd_request_seconds.",
        _MODEL,
        _REQUEST_S,
        retells="herd_request_seconds",
    ),
    Metric(
        "vllm:request_prompt_tokens",
        "histogram",
        "tokens",
        "As herd_request_prompt_tokens.",
        _MODEL,
        _TOKENS,
        retells="herd_request_prompt_tokens",
    ),
    Metric(
        "vllm:request_generation_tokens",
        "histogram",
        "tokens",
        "As herd_request_generation_tokens.",
        _MODEL,
        _TOKENS,
        retells="herd_request_generation_tokens",
    ),
    Metric(
        "vllm:prompt_tokens_total",
        "counter",
        "tokens",
        "As herd_prompt_tokens_total.",
        _MODEL,
        retells="herd_prompt_tokens_total",
    ),
    Metric(
        "vllm:generation_tokens_total",
        "counter",
        "tokens",
        "As herd_generation_tokens_total.",
        _MODEL,
        retells="herd_generation_tokens_total",
    ),
    Metric(
        "vllm:request_success_total",
        "counter",
        "sequences",
        "As herd_sequences_total.",
        ("finished_reason", *_MODEL),
        retells="herd_sequences_total",
    ),
)
"""Names that dashboards, load balancers and scalers read which were made for vLLM; those of vLLM 0.32.

No totals of routers are among them: a sum over routers falls when one goes, which rate() takes for a restart of all.
"""

METRICS = _OF_REQUESTS + _OF_ROUTERS + _OF_DISPATCHES + _OF_REPLICAS + _FOR_VLLM
