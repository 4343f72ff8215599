"""Which alerts of the chart fire on what front doors really export, and which stay silent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.front_door_metrics import FrontDoorMetrics
from cluster.router_client import PlacementInfo
from tests.chart.chart import only, render
from tests.cluster.busy_cluster import busy_placement, router_loads
from tests.cluster.promql_value import Query, Series, scraped

WITH_ALERTS = ("--set=serviceMonitor.enabled=true,prometheusRule.enabled=true",)
ZERO = ("--set=settings.scaling.router_min_replicas=0",)
ROUTERS = router_loads(ejected=())
NUM_EXPERTS = 16
BUSY = busy_placement(NUM_EXPERTS, 4)
HEALTHY = replace(BUSY, roster=tuple(each for each in BUSY.roster if each.state == "ready"), num_draining_nodes=0)
STARTS, DRAINS = (
    replace(next(each for each in BUSY.roster if each.state == state), deployment="Experts-0")
    for state in ("starting", "draining")
)


@pytest.fixture(scope="module")
def rules():
    """The alerts' queries by name, as so many values make them."""
    made: dict[tuple[str, ...], dict[str, str]] = {}

    def of(*values: str) -> dict[str, str]:
        if values not in made:
            [group] = only(render(*WITH_ALERTS, *values), "PrometheusRule")["spec"]["groups"]
            made[values] = {each["alert"]: each["expr"] for each in group["rules"]}
        return made[values]

    return of


def scrape(placement: PlacementInfo | None, loads=ROUTERS, num_experts=NUM_EXPERTS, doors=None) -> Series:
    """Return what Prometheus gets of two front doors of the release, which tell the same of the cluster."""
    doors = doors or [FrontDoorMetrics("tiny"), FrontDoorMetrics("tiny")]
    pages = [door.render(loads, (), placement, num_experts=num_experts) for door in doors]
    return scraped(pages, job="herd-http", namespace="llama")


def firing(rules: dict[str, str], now: Series, before: Series | None = None) -> dict[str, list[float]]:
    """Return the values of the alerts that have any; what each asks for beyond that is how long."""
    values = {
        name: list(Query(text, now, now if before is None else before).value().values()) for name, text in rules.items()
    }
    return {name: found for name, found in values.items() if found}


def without_holder_of_the_first_group(*roster):
    return replace(HEALTHY, expert_replicas=HEALTHY.expert_replicas[2:], roster=(*HEALTHY.roster, *roster))


def test_a_healthy_cluster_is_silent(rules):
    assert firing(rules(), scrape(HEALTHY)) == {}


def test_a_dense_model_is_silent_whether_or_not_the_directory_answers(rules):
    dense = replace(HEALTHY, expert_replicas=(), roster=HEALTHY.roster[:3])
    assert firing(rules(), scrape(dense, num_experts=0)) == {}
    assert firing(rules(), scrape(None, num_experts=0)) == {}


def test_it_is_silent_while_only_a_router_tells_where_experts_are(rules):
    told = PlacementInfo(version=17, expert_replicas=HEALTHY.expert_replicas, is_current=False)
    assert firing(rules(), scrape(told)) == {}


def test_without_a_router_that_answers_it_is_told_whatever_the_directory_says(rules):
    assert firing(rules(), scrape(HEALTHY, loads=())) == {"HerdNoReadyRouter": [0]}


def test_without_a_front_door_of_this_release_it_is_told(rules):
    elsewhere = {
        (name, frozenset({**dict(labels), "namespace": "other"}.items())): value
        for (name, labels), value in scrape(HEALTHY).items()
    }
    assert firing(rules(), elsewhere) == {"HerdNoReadyRouter": [0]}
    assert firing(rules(*ZERO), elsewhere) == {"HerdNoReadyRouter": [1]}


def test_routers_that_may_go_to_zero_are_not_missed(rules):
    assert firing(rules(*ZERO), scrape(replace(HEALTHY, expert_replicas=(), roster=()), loads=())) == {}


def test_routers_for_long_requests_that_stay_are_missed(rules):
    kept = rules(*ZERO, "--set=settings.long.from_tokens=5000")
    assert firing(kept, scrape(HEALTHY, loads=())) == {"HerdNoReadyRouter": [0]}


def test_experts_that_nobody_holds_are_told_at_once_unless_replicas_load(rules):
    lost = scrape(without_holder_of_the_first_group())
    assert firing(rules(), lost) == {"HerdExpertWithoutHolder": [3], "HerdExpertLoadsLong": [3]}
    loading = scrape(without_holder_of_the_first_group(STARTS))
    assert firing(rules(), loading) == {"HerdExpertLoadsLong": [3]}


def test_nodes_and_replicas_that_drain_are_told_each(rules):
    assert firing(rules(), scrape(replace(HEALTHY, num_draining_nodes=2))) == {"HerdDrainStuck": [2]}
    drains = replace(HEALTHY, num_draining_nodes=2, roster=(*HEALTHY.roster, DRAINS))
    assert sorted(firing(rules(), scrape(drains))["HerdDrainStuck"]) == [1, 2]


def test_requests_that_fail_by_the_servers_fault_are_told_by_their_share(rules):
    doors = [FrontDoorMetrics("tiny"), FrontDoorMetrics("tiny")]
    doors[0].count_request("chat", "200")  # a series has a rate once it has two values
    before = scrape(HEALTHY, doors=doors)
    doors[0].count_request("chat", "200")
    doors[1].count_request("chat", "503")
    assert firing(rules(), scrape(HEALTHY, doors=doors), before) == {"HerdRequestsFail": [0.5]}
    for _ in range(38):
        doors[0].count_request("chat", "200")
    assert firing(rules(), scrape(HEALTHY, doors=doors), before) == {}


def test_first_tokens_that_come_late_are_told_by_how_late(rules):
    doors = [FrontDoorMetrics("tiny")]
    before = scrape(HEALTHY, doors=doors)
    with doors[0].stopwatch("standard", (), 1) as watch:
        watch.tokens(0, 1)
    now = scrape(HEALTHY, doors=doors)
    [(name, [late_s])] = firing(rules("--set-json=prometheusRule.firstTokenSeconds=0.001"), now, before).items()
    assert (name, late_s > 0.001) == ("HerdFirstTokenSlow", True)
    assert firing(rules("--set-json=prometheusRule.firstTokenSeconds=3600"), now, before) == {}
