"""What KubeRay 1.7 does with a changed RayService, by its rule: what it compares, and which groups may be added."""

from __future__ import annotations

import copy
from enum import StrEnum

from tests.chart.chart import Object, only

_COUNTS = ("replicas", "minReplicas", "maxReplicas")
_OF_PODS = ("tolerations", "schedulingGates")


class Effect(StrEnum):
    """What becomes of pods that run; as the documentation says it."""

    IN_PLACE = "in place"
    NO_PODS = "pods stay as they are"
    NEW_CLUSTER = "a new cluster"
    NOTHING = "pods do not notice"
    SETTINGS_ALONE = "settings in place, in pods that stay as they are"


def effect(before: list[Object], after: list[Object]) -> Effect:
    """Return what an upgrade does to pods, from what the chart makes before and after it."""
    old, new = (only(each, "RayService")["spec"] for each in (before, after))
    groups = len(old["rayClusterConfig"]["workerGroupSpecs"])
    if compared(old["rayClusterConfig"]) != compared(new["rayClusterConfig"], groups):
        if new["upgradeStrategy"]["type"] != "None":
            return Effect.NEW_CLUSTER
        # The strategy keeps KubeRay from a new cluster and from nothing else: Ray Serve gets what is new.
        return Effect.SETTINGS_ALONE if old["serveConfigV2"] != new["serveConfigV2"] else Effect.NOTHING
    if len(new["rayClusterConfig"]["workerGroupSpecs"]) > groups:
        return Effect.IN_PLACE  # the one case in which the spec of a running cluster is replaced, with all its numbers
    if old["rayClusterConfig"] != new["rayClusterConfig"]:
        return Effect.NO_PODS
    return Effect.IN_PLACE if old["serveConfigV2"] != new["serveConfigV2"] else Effect.NOTHING


def compared(cluster: Object, groups: int | None = None) -> Object:
    """Return what KubeRay compares of a cluster's configuration, with its first groups only."""
    cluster = copy.deepcopy(cluster)
    cluster["workerGroupSpecs"] = cluster["workerGroupSpecs"][:groups]
    for group in cluster["workerGroupSpecs"]:
        for key in _COUNTS:
            group.pop(key)
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        for key in _OF_PODS:
            group["template"]["spec"].pop(key, None)
    return cluster
