"""Every query of the Grafana dashboard and of the docs is answered by metrics that a front door serves."""

import json
import re

import pytest

from cluster.metrics import METRICS
from tests.conftest import ROOT

DASHBOARD = json.loads((ROOT / "helm" / "dashboards" / "herd.json").read_text())
KNOWN = {metric.name: metric for metric in METRICS}
OF_SCRAPES = {"job", "instance"}
FUNCTIONS = {"sum", "max", "topk", "rate", "histogram_quantile", "clamp_min", "scalar", "vector", "by", "or"}


def panels() -> list[dict]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def documented() -> list[str]:
    """Return the queries of the docs, one a line."""
    text = (ROOT / "docs" / "observability.md").read_text()
    blocks = re.findall(r"```promql\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def problems(expression: str) -> list[str]:
    """Return what a query asks for that METRICS does not have, and rates of what may fall."""
    found = []
    bare = re.sub(r"\{.*?\}|\[.*?\]|\bby \(.*?\)|\b\d[\w.]*", " ", expression)
    names = set(re.findall(r"[a-zA-Z_:][\w:]*", bare)) - FUNCTIONS
    metrics = {name: metric_of(name) for name in names}
    found += [f"{name} is no metric" for name, metric in metrics.items() if metric is None]
    labels = {label for metric in metrics.values() if metric for label in (*metric.labels, "le")} | OF_SCRAPES
    for group in re.findall(r"\bby \((.*?)\)", expression):
        found += [f"{label} is no label" for label in group.split(", ") if label not in labels]
    for name, matchers in re.findall(r"([\w:]+)\{(.*?)\}", expression):
        own = {*(metrics[name].labels if metrics.get(name) else ()), *OF_SCRAPES}
        found += [f"{label} is no label of {name}" for label in re.findall(r"(\w+)[!=]", matchers) if label not in own]
    for name in re.findall(r"\brate\(([\w:]+)", expression):
        metric = metrics.get(name)
        found += [f"{name} may fall"] if metric and metric.kind == "gauge" and not metric.grows else []
    return found


def metric_of(name: str):
    """Return the metric that a series belongs to; None: there is none."""
    if name in KNOWN:
        return KNOWN[name] if KNOWN[name].kind != "histogram" else None  # without a suffix it has no series
    base, _, suffix = name.rpartition("_")
    metric = KNOWN.get(base)
    return metric if suffix in ("bucket", "sum", "count") and metric and metric.kind == "histogram" else None


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("sum(rate(herd_request_total[5m]))", "herd_request_total is no metric"),
        ("herd_request_seconds", "herd_request_seconds is no metric"),
        ("rate(herd_requests_total_bucket[5m])", "herd_requests_total_bucket is no metric"),
        ('herd_slots{expert="1"}', "expert is no label of herd_slots"),
        ("sum by (expert) (herd_slots)", "expert is no label"),
        ("rate(herd_slots[5m])", "herd_slots may fall"),
    ],
)
def test_a_wrong_query_is_seen(expression, problem):
    assert problem in problems(expression)


@pytest.mark.parametrize("expression", sorted(set(expressions() + documented())))
def test_every_query_is_answered_by_exported_metrics(expression):
    assert problems(expression) == []


def test_the_dashboard_has_what_grafana_needs_to_import_it():
    assert (DASHBOARD["uid"], DASHBOARD["title"]) == ("herd", "Herd")
    assert DASHBOARD["schemaVersion"] >= 36
    assert "id" not in DASHBOARD, "the database of one Grafana gives it"
    variables = {each["name"]: each for each in DASHBOARD["templating"]["list"]}
    assert (variables["datasource"]["type"], variables["datasource"]["query"]) == ("datasource", "prometheus")
    assert variables["job"]["definition"] == "label_values(herd_info, job)"
    identifiers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(identifiers)) == len(identifiers)


def test_every_panel_has_a_title_a_place_and_queries_of_the_data_source_that_was_chosen():
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    for panel in panels():
        assert panel["title"]
        assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
        assert panel["targets"]
        assert [panel["datasource"], *(target["datasource"] for target in panel["targets"])] == [chosen] * (
            len(panel["targets"]) + 1
        )
        for target in panel["targets"]:
            assert 'job=~"$job"' in target["expr"], "of the Herd that was chosen, not of all"


def test_there_is_a_row_for_each_part():
    rows = [panel["title"] for panel in DASHBOARD["panels"] if panel["type"] == "row"]
    assert rows == [
        "Requests",
        "Latency",
        "Tokens",
        "KV and prefix cache",
        "Experts",
        "Dispatch",
        "Scaling",
        "Failures",
    ]
