"""What an upgrade does to pods that run: docs/kubernetes.md's table, row by row, by the rule of KubeRay's.

Twice the GPUs is what its readers fear, so a setting that is not named there must not be able to cost them.
"""

from __future__ import annotations

import dataclasses
import re
import typing

import pytest
import yaml

from cluster.config import ClusterConfig
from tests.chart.chart import render
from tests.chart.kuberay import Effect, effect
from tests.conftest import ROOT

SECTION = (ROOT / "docs" / "kubernetes.md").read_text().partition("\n## Upgrade\n")[2].partition("\n## ")[0]
TABLE = dict(re.findall(r"^\| (.+?) \| (.+?) \|$", SECTION, re.MULTILINE))
SPREAD = "workers.experts.spreadCopiesOverNodes=true,workers.experts.nodeSelector.pool=big"
SHARDS = "settings.context.kv_bytes=1000000,settings.context.shards=2"
OF_PODS = (
    "image, weights, secrets, `pods` else, nodes, cores, memory, GPUs, `head`, `autoscaling`, `drain`, `redis`, "
    "`spreadCopiesOverNodes`"
)
ROWS = {
    "`settings`, those below left out": ["settings.router.slots=3"],
    "`replicas`, `maxReplicas`, `tolerations` of workers, settings that say how many replicas there are": [
        "workers.routers.replicas=2",
        "workers.routers.tolerations[0].key=gpu",
        "settings.router.replicas=2",
        "settings.experts.replicas_per_group=2",
        "settings.scaling.front_door_min_replicas=2",
    ],
    "context shards where there were none": [SHARDS],
    "`service`, `networkPolicy`, `podDisruptionBudgets`, `serviceMonitor`, `prometheusRule`, "
    "`grafanaDashboard`, `rbac`, `pods.accountAnnotations`": [
        "service.type=NodePort,networkPolicy.enabled=false,podDisruptionBudgets=false,serviceMonitor.enabled=true,"
        "prometheusRule.enabled=true,grafanaDashboard.enabled=true,rbac.readNodes=false",
        "pods.accountAnnotations.cloud=role",
    ],
    OF_PODS: [
        "image.tag=0.2.0",
        "weights.source=pvc,weights.claim=scout",
        "secrets[0].name=certificates,secrets[0].mountPath=/etc/certificates",
        "pods.priorityClass=high",
        "workers.experts.nodeSelector.pool=big",
        "workers.experts.cpu=3",
        "workers.routers.memory=5Gi",
        "workers.routers.gpus=1",
        "head.memory=8Gi",
        "autoscaling.enabled=true",
        "drain.seconds=60",
        "redis.address=redis:6379",
        SPREAD,
    ],
}
"""First cells of the table, and values that are changed; the settings of the last row are found below."""
THEIR_OWN_ROWS = {"context.shards", "context.max_shards"}


STRATEGY_NONE = "upgrade.strategy=None"


def assigned(assignments):
    return render(*(f"--set={each}" for each in assignments))


@pytest.fixture(scope="module")
def before():
    """Everything that the chart makes of its own values."""
    return render()


def test_every_row_of_the_table_is_proven():
    last = [row for row in TABLE if row.startswith(("`settings.", "the same", "change", "---"))]
    assert set(TABLE) - set(last) == set(ROWS)


@pytest.mark.parametrize(("row", "assignment"), [(row, each) for row, changes in ROWS.items() for each in changes])
def test_a_change_does_what_the_table_says(before, row, assignment):
    assert TABLE[row].startswith(effect(before, assigned([assignment])))


def test_autoscaling_and_its_bounds_are_changed_as_the_table_says():
    bounds = ["autoscaling.enabled=true", "settings.scaling.router_max_replicas=3"]
    assert effect(assigned(bounds), assigned([*bounds, "settings.scaling.router_max_replicas=5"])) is Effect.NO_PODS


def test_fewer_expert_groups_make_a_new_cluster_where_copies_spread_and_more_do_not():
    two, four = assigned([SPREAD]), assigned([SPREAD, "settings.experts.groups=4"])
    assert effect(four, two) is Effect.NEW_CLUSTER
    assert effect(two, four) is not Effect.NEW_CLUSTER


def test_a_group_that_goes_makes_a_new_cluster(before):
    assert effect(assigned([SHARDS]), before) is Effect.NEW_CLUSTER


@pytest.fixture(scope="module")
def before_without_new_clusters():
    return assigned([STRATEGY_NONE])


def test_with_the_strategy_none_changes_of_pods_wait_unless_settings_go_with_them(before_without_new_clusters):
    waits, outage = (TABLE[row] for row in TABLE if row.startswith("the same"))
    of_pods = [each for each in ROWS[OF_PODS] if each != SPREAD]
    assert waits.startswith(effect(before_without_new_clusters, assigned([STRATEGY_NONE, *of_pods])))
    assert outage.startswith(effect(before_without_new_clusters, assigned([STRATEGY_NONE, SPREAD])))


def other_value(kind, default):
    """Return some value of a setting that is not its default."""
    origin, choices = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return next(each for each in choices if each != default)
    if type(None) in choices:
        return other_value(next(each for each in choices if each is not type(None)), default)
    if kind is bool:
        return not default
    if kind is str:
        return "x"
    return (default or 0) + (20 if kind is int else 20.5)


def test_only_the_settings_that_the_table_names_make_a_new_cluster(before, before_without_new_clusters, tmp_path):
    [row] = [row for row in TABLE if row.startswith("`settings.")]
    assert TABLE[row].startswith(Effect.NEW_CLUSTER)
    named = {each.removeprefix("settings.") for each in re.findall(r"`([a-z_.]+)`", row)}
    everything = {}
    for section in dataclasses.fields(ClusterConfig):
        owner = getattr(ClusterConfig(), section.name)
        hints = typing.get_type_hints(type(owner))
        for field in dataclasses.fields(owner):
            value = other_value(hints[field.name], getattr(owner, field.name))
            everything[f"{section.name}.{field.name}"] = value
    # A device is chosen with a pod's GPUs, and hosts that nobody reaches are refused.
    everything |= {"router.device": "cpu", "experts.device": "cpu", "http.host": "::"}
    assert named <= everything.keys()

    def changed(keys, old=before, strategy="NewCluster"):
        settings = {}
        for key in keys:
            section, name = key.split(".")
            settings.setdefault(section, {})[name] = everything[key]
        file = tmp_path / "values.yaml"
        file.write_text(yaml.safe_dump({"settings": settings, "upgrade": {"strategy": strategy}}))
        return effect(old, render(f"--values={file}"))

    assert changed(everything.keys() - named - THEIR_OWN_ROWS) is Effect.NO_PODS, "one of them is missing in the table"
    assert {key: changed([key]) for key in named} == dict.fromkeys(named, Effect.NEW_CLUSTER)
    _, outage = (TABLE[row] for row in TABLE if row.startswith("the same"))
    assert outage.startswith(changed(named, before_without_new_clusters, "None"))
