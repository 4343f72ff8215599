"""Kubernetes objects as an API server would tell them, with no more in them than Herd reads."""

from __future__ import annotations

from typing import Any

NAMESPACE = "ai"
CLUSTER = "herd-abcde"
"""The RayCluster of `pod`."""


def node(name: str, *taints: str, labels: dict[str, str] | None = None, gpus: int = 0) -> dict[str, Any]:
    """Return a node; each taint is `key` or `key=value`, its effect NoSchedule."""
    made = []
    for taint in taints:
        key, _, value = taint.partition("=")
        made.append({"key": key, "effect": "NoSchedule"} | ({"value": value} if value else {}))
    capacity = {"cpu": "16"} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    return {
        "metadata": {"name": name, "labels": labels or {}},
        "spec": {"taints": made} if made else {},
        "status": {"allocatable": capacity},
    }


def pod(
    name: str, node_name: str | None, ip: str | None, *, deleted: bool = False, disruption: str | None = None
) -> dict[str, Any]:
    """Return a running worker pod of the RayCluster.

    Args:
        name: of the pod.
        node_name: where it runs; None: nowhere yet.
        ip: its address.
        deleted: whether it has a deletion timestamp.
        disruption: the reason of a condition DisruptionTarget; None: it has none.
    """
    meta: dict[str, Any] = {"name": name, "namespace": NAMESPACE, "labels": {"ray.io/cluster": CLUSTER}}
    if deleted:
        meta["deletionTimestamp"] = "2026-11-22T02:00:00Z"
    conditions = []
    if disruption:
        conditions.append({"type": "DisruptionTarget", "status": "True", "reason": disruption})
    return {
        "metadata": meta,
        "spec": {"nodeName": node_name, "terminationGracePeriodSeconds": 60, "containers": []},
        "status": {"phase": "Running" if node_name else "Pending", "podIP": ip, "conditions": conditions},
    }
