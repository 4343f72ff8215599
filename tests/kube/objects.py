"""Kubernetes objects as an API server would tell them, with no more in them than Herd reads."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

NAMESPACE = "ai"
CLUSTER = "herd-abcde"
"""The RayCluster of `pod`."""
_GRACE_S = 60


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
    name: str,
    node_name: str | None,
    ip: str | None,
    *,
    deleted: bool = False,
    disruption: str | None = None,
) -> dict[str, Any]:
    """Return a running worker pod of the RayCluster.

    Args:
        name: of the pod.
        node_name: where it runs; None: nowhere yet.
        ip: its address.
        deleted: whether it was told to end.
        disruption: the reason of a condition DisruptionTarget; None: it has none.
    """
    meta: dict[str, Any] = {
        "name": name,
        "namespace": NAMESPACE,
        "labels": {"ray.io/cluster": CLUSTER, "ray.io/is-ray-node": "yes", "ray.io/group": "experts"},
    }
    if deleted:
        meta |= deletion(_GRACE_S)
    conditions = []
    if disruption:
        conditions.append({"type": "DisruptionTarget", "status": "True", "reason": disruption})
    return {
        "metadata": meta,
        "spec": {"nodeName": node_name, "terminationGracePeriodSeconds": _GRACE_S, "containers": []},
        "status": {"phase": "Running" if node_name else "Pending", "podIP": ip, "conditions": conditions},
    }


def deletion(grace_s: float, told_at: datetime | None = None) -> dict[str, Any]:
    """Return what the metadata of a pod say that was told to end.

    Args:
        grace_s: seconds it has, whole ones.
        told_at: when that was; None: now.
    """
    killed_at = (told_at or datetime.now(UTC)) + timedelta(seconds=grace_s)
    return {"deletionTimestamp": f"{killed_at:%Y-%m-%dT%H:%M:%SZ}", "deletionGracePeriodSeconds": int(grace_s)}


def operator(tag: str, ready: int = 1) -> dict[str, Any]:
    """Return the Deployment of KubeRay's operator, its image's tag given."""
    return {
        "metadata": {
            "name": "kuberay-operator",
            "namespace": "kuberay",
            "labels": {"app.kubernetes.io/name": "kuberay-operator"},
        },
        "spec": {"template": {"spec": {"containers": [{"image": f"quay.io/kuberay/operator:{tag}"}]}}},
        "status": {"readyReplicas": ready},
    }


def ray_services_crd() -> dict[str, Any]:
    """Return the definition of RayServices."""
    names = {"plural": "rayservices", "kind": "RayService"}
    return {"metadata": {"name": "rayservices.ray.io"}, "spec": {"group": "ray.io", "names": names}}


def claim(name: str, phase: str) -> dict[str, Any]:
    """Return a PersistentVolumeClaim."""
    return {"metadata": {"name": name, "namespace": NAMESPACE}, "spec": {}, "status": {"phase": phase}}


def ray_service(name: str, cluster: str = CLUSTER) -> dict[str, Any]:
    """Return a RayService that is ready."""
    return {
        "metadata": {"name": name, "namespace": NAMESPACE},
        "status": {
            "conditions": [{"type": "Ready", "status": "True", "reason": "NonZeroServeEndpoints", "message": ""}],
            "activeServiceStatus": {
                "rayClusterName": cluster,
                "applicationStatuses": {"herd": {"status": "DEPLOYING", "message": "waits for replicas"}},
            },
        },
    }
