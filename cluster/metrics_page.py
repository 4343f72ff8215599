"""docs/metrics.md as METRICS has it: `python -m cluster.metrics_page > docs/metrics.md` writes it anew."""

from __future__ import annotations

from cluster.metrics import METRICS, Metric

_HEAD = """# Metrics

Every front door serves these at `/metrics`, in Prometheus' text format; [observability.md](observability.md) says what
to ask of them. This page is generated from `cluster/metrics.py`: `python -m cluster.metrics_page > docs/metrics.md`.

A gauge that *grows* counts since the start of its replica, or of the directory, and goes when that goes; `rate()`
applies to it. Each front door tells of its own requests, to be added. Of routers, experts and replicas each one tells
the whole cluster: with several front doors take what one says, `max by (replica)` and the like, not the sum. So do
`vllm:num_requests_*` and `vllm:kv_cache_usage_perc`, whichever front door a load balancer asks.

| metric | kind | unit | labels | meaning |
|---|---|---|---|---|
"""


def metrics_page() -> str:
    """Return the page."""
    rows = "".join(_row(each) for each in METRICS)
    bounds = "".join(f"| `{each.name}` | {_numbers(each.buckets)} |\n" for each in METRICS if each.buckets)
    return f"{_HEAD}{rows}\n## Buckets\n\n| histogram | upper bounds |\n|---|---|\n{bounds}"


def _row(metric: Metric) -> str:
    kind = f"{metric.kind}, grows" if metric.grows else metric.kind
    labels = ", ".join(f"`{each}`" for each in metric.labels)
    return f"| `{metric.name}` | {kind} | {metric.unit} | {labels} | {metric.help} |\n"


def _numbers(bounds: tuple[float, ...]) -> str:
    return ", ".join(f"{each:g}" if each < 10_000 else str(int(each)) for each in bounds)


if __name__ == "__main__":
    print(metrics_page(), end="")
