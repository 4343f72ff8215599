"""What a PromQL query asks for, held against the table of metrics."""

from __future__ import annotations

import re

from cluster.metrics import METRICS, Metric

KNOWN = {metric.name: metric for metric in METRICS}
OF_SCRAPES = {"job", "instance", "namespace"}
FUNCTIONS = {
    "sum",
    "max",
    "count",
    "topk",
    "rate",
    "histogram_quantile",
    "clamp_min",
    "scalar",
    "vector",
    "absent",
    "by",
    "or",
    "unless",
    "on",
}
OWN_GAUGES = {
    "herd_info",
    "herd_sequences_in_flight",
    "herd_sequences_in_line",
    "herd_admitted_prompt_tokens",
    "herd_front_door_draining",
}
"""Of one front door; all others tell of the whole cluster, each front door the same."""


def problems(expression: str) -> list[str]:
    """Return what a query asks for that METRICS does not have, and rates of what may fall."""
    found = []
    bare = re.sub(r"\{.*?\}|\[.*?\]|\b(?:by|on) ?\(.*?\)|\b\d[\w.]*", " ", expression)
    names = set(re.findall(r"[a-zA-Z_:][\w:]*", bare)) - FUNCTIONS
    metrics = {name: metric_of(name) for name in names}
    found += [f"{name} is no metric" for name, metric in metrics.items() if metric is None]
    labels = {label for metric in metrics.values() if metric for label in (*metric.labels, "le")} | OF_SCRAPES
    for group in re.findall(r"\bby \((.*?)\)", expression):
        found += [f"{label} is no label" for label in group.split(", ") if label not in labels]
    for name, matchers in re.findall(r"([\w:]+)\{(.*?)\}", expression):
        own = {*(metrics[name].labels if metrics.get(name) else ()), *OF_SCRAPES}
        found += [f"{label} is no label of {name}" for label in re.findall(r"(\w+)[!=]", matchers) if label not in own]
    for name in re.findall(r"\b(?:sum|count)(?: by \(.*?\))? ?\((?:rate\()?([\w:]+)", expression):
        metric = metrics.get(name)
        if metric and metric.kind == "gauge" and name not in OWN_GAUGES:
            found.append(f"every front door tells {name}: max, then add")
    for name in re.findall(r"\brate\(([\w:]+)", expression):
        metric = metrics.get(name)
        found += [f"{name} may fall"] if metric and metric.kind == "gauge" and not metric.grows else []
    return found


def metric_of(name: str) -> Metric | None:
    """Return the metric that a series belongs to; None: there is none."""
    if name in KNOWN:
        return KNOWN[name] if KNOWN[name].kind != "histogram" else None  # without a suffix it has no series
    base, _, suffix = name.rpartition("_")
    metric = KNOWN.get(base)
    return metric if suffix in ("bucket", "sum", "count") and metric and metric.kind == "histogram" else None
