"""Every query of the Grafana dashboard and of the docs is answered by metrics that a front door serves."""

import json
import re

import pytest

from tests.cluster.promql import problems
from tests.conftest import ROOT

DASHBOARD = json.loads((ROOT / "helm" / "dashboards" / "herd.json").read_text())


def panels() -> list[dict]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def documented() -> list[str]:
    """Return the queries of the docs, one a line."""
    text = (ROOT / "docs" / "observability.md").read_text()
    blocks = re.findall(r"```promql\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("sum(rate(herd_request_total[5m]))", "herd_request_total is no metric"),
        ("herd_request_seconds", "herd_request_seconds is no metric"),
        ("rate(herd_requests_total_bucket[5m])", "herd_requests_total_bucket is no metric"),
        ('herd_slots{expert="1"}', "expert is no label of herd_slots"),
        ("sum by (expert) (herd_slots)", "expert is no label"),
        ("rate(herd_slots[5m])", "herd_slots may fall"),
        ("sum(herd_slots)", "every front door tells herd_slots: max, then add"),
        ("sum by (replica) (rate(herd_preemptions[5m]))", "every front door tells herd_preemptions: max, then add"),
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
    assert variables["namespace"]["definition"] == "label_values(herd_info, namespace)"
    assert variables["namespace"]["allValue"] == ".*", "outside Kubernetes there is none"
    assert variables["job"]["definition"] == 'label_values(herd_info{namespace=~"$namespace"}, job)'
    assert not variables["job"]["includeAll"], "deployments and experts of two Herds have the same names"
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
            queries = re.findall(r"\{(.*?)\}", target["expr"])
            assert all(each.startswith('job=~"$job",namespace=~"$namespace"') for each in queries), "of the Herd chosen"
            assert len(queries) == len(re.findall(r"\b(?:herd_|vllm:)\w+", target["expr"]))
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names)


def test_no_panel_lies_on_another_and_each_says_its_unit():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] not in ("row", "heatmap"):
            assert panel["fieldConfig"]["defaults"]["unit"] in {"none", "percentunit", "reqps", "s", "bytes", "Bps"}


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
