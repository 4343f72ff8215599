"""Which pods are about to end, from what Kubernetes says of them and of their nodes. Pure.

taint of a node          its autoscaler, Karpenter, a cloud's notice of a spot node's end, a cordon
deletionTimestamp        the pod is being ended: SIGTERM is sent, or will be after its preStop hook
DisruptionTarget         the pod is about to be evicted or preempted

Source: kubernetes.io "Taints and Tolerations", "Disruptions"; cluster-autoscaler `utils/taints`; karpenter.sh
"Disruption"; aws-node-termination-handler's README; Google Cloud "Spot VMs" on GKE.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

KubeObject = Mapping[str, Any]
"""An object as the API server tells it."""

_ENDING_TAINTS = {
    "ToBeDeletedByClusterAutoscaler": "its autoscaler removes it",
    "karpenter.sh/disrupted": "Karpenter removes it",
    "karpenter.sh/disruption": "Karpenter removes it",
    "node.kubernetes.io/unschedulable": "it is cordoned",
    "node.cloudprovider.kubernetes.io/shutdown": "its cloud shuts it down",
    "cloud.google.com/impending-node-termination": "its cloud takes it back",
    "aws-node-termination-handler/spot-itn": "its cloud takes it back",
    "aws-node-termination-handler/scheduled-maintenance": "its cloud maintains it",
    "aws-node-termination-handler/asg-lifecycle-termination": "its autoscaler removes it",
}
"""By key, why. Not DeletionCandidateOfClusterAutoscaler nor a rebalance recommendation: these may pass, and a Ray node
that drains cannot be called back. Nor those that spot nodes have all their life."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PodEnd:
    """A pod is about to go. Times are seconds since 1970, by the API server's clock."""

    why: str
    """For people."""
    told_at_s: float | None = None
    """When its deletion was asked for, and with it SIGTERM; None: it was not yet."""
    killed_at_s: float | None = None
    """When what is left of it is killed; None likewise."""


def node_ends(node: KubeObject) -> str:
    """Return why a node is about to go; empty: it stays."""
    spec = node.get("spec") or {}
    for taint in spec.get("taints") or ():
        if why := _ENDING_TAINTS.get(taint["key"]):
            return f"node {node['metadata']['name']}: {why} (taint {taint['key']})"
    if spec.get("unschedulable"):
        return f"node {node['metadata']['name']}: it is cordoned"
    return ""


def pod_ends(pod: KubeObject) -> str:
    """Return why a pod is about to go, whatever becomes of its node; empty: it stays."""
    meta, status = pod["metadata"], pod.get("status") or {}
    if meta.get("deletionTimestamp"):
        return f"pod {meta['name']}: it is being deleted"
    for condition in status.get("conditions") or ():
        if condition["type"] == "DisruptionTarget" and condition["status"] == "True":
            return f"pod {meta['name']}: it is about to be evicted ({condition.get('reason', 'no reason given')})"
    return ""


def foretold_ends(pods: Iterable[KubeObject], nodes: Iterable[KubeObject]) -> dict[str, PodEnd]:
    """Return the ends of the pods that are about to go, by their addresses.

    Args:
        pods: all of Herd's; those without an address have not begun to run, and the address of one that has ended may
            be another's by now.
        nodes: of the cluster, as far as they may be read.
    """
    nodes_that_end = {node["metadata"]["name"]: why for node in nodes if (why := node_ends(node))}
    ends = {}
    for pod in pods:
        status = pod.get("status") or {}
        ip = None if status.get("phase") in ("Succeeded", "Failed") else status.get("podIP")
        why = pod_ends(pod) or nodes_that_end.get((pod.get("spec") or {}).get("nodeName", ""), "")
        if ip and why:
            ends[ip] = PodEnd(why=why, **_deletion_times(pod["metadata"]))
    return ends


def _deletion_times(meta: KubeObject) -> dict[str, float]:
    """Return when a pod was told to end and when it is killed: Kubernetes notes the latter, and the time between."""
    if not (deletion := meta.get("deletionTimestamp")):
        return {}
    killed_at_s = datetime.fromisoformat(deletion).timestamp()
    return {"told_at_s": killed_at_s - meta.get("deletionGracePeriodSeconds", 0), "killed_at_s": killed_at_s}
