"""What `herd status --kube` tells: RayServices, what is said of them, their pods, why one does not run. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cluster.disruption import KubeObject, node_ends, pod_ends

_ADVICE = {
    "ImagePullBackOff": "see that the image exists, and its pull secret",
    "ErrImagePull": "see that the image exists, and its pull secret",
    "CrashLoopBackOff": "`kubectl logs --previous` shows its last words",
    "CreateContainerConfigError": "a Secret or ConfigMap it names is missing",
    "OOMKilled": "give it more memory",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PodInfo:
    """A pod of a RayCluster."""

    name: str
    """Of the pod."""
    cluster: str
    """Its RayCluster."""
    group: str
    """headgroup, or the worker group it belongs to."""
    node: str
    """Where it runs; empty: nowhere yet."""
    state: str
    """running, not ready, ending, or Kubernetes' phase in lower case."""
    why: str
    """What keeps it from running, or ends it; empty: it runs."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServiceInfo:
    """A RayService."""

    name: str
    """Of the service."""
    clusters: tuple[str, ...]
    """Its RayClusters: the active one, and the one that is to follow."""
    conditions: tuple[str, ...]
    """What its operator says of it: type, status, and why."""
    applications: tuple[str, ...]
    """What Ray Serve says of its applications."""


def service_info(service: KubeObject) -> ServiceInfo:
    """Return what matters of a RayService."""
    status = service.get("status") or {}
    parts = [status.get(key) or {} for key in ("activeServiceStatus", "pendingServiceStatus")]
    applications = [
        f"{name}: {each.get('status', 'unknown')}{_reason(each.get('message', ''))}"
        for part in parts
        for name, each in (part.get("applicationStatuses") or {}).items()
    ]
    return ServiceInfo(
        name=service["metadata"]["name"],
        clusters=tuple(part["rayClusterName"] for part in parts if part.get("rayClusterName")),
        conditions=tuple(
            f"{each['type']} {each['status']}{_reason(each.get('message') or each.get('reason', ''))}"
            for each in status.get("conditions") or ()
        ),
        applications=tuple(applications),
    )


def pod_infos(pods: Iterable[KubeObject], nodes: Iterable[KubeObject]) -> list[PodInfo]:
    """Return the pods, those that do not run first.

    Args:
        pods: of RayClusters.
        nodes: of the cluster; without those that may not be read.
    """
    ends = {node["metadata"]["name"]: node_ends(node) for node in nodes}
    infos = [_pod_info(pod, ends.get(pod["spec"].get("nodeName") or "", "")) for pod in pods]
    return sorted(infos, key=lambda each: (not each.why, each.cluster, each.group, each.name))


def _pod_info(pod: KubeObject, node_end: str) -> PodInfo:
    meta, status = pod["metadata"], pod.get("status") or {}
    labels, phase = meta.get("labels") or {}, status.get("phase", "Unknown")
    end = pod_ends(pod) or node_end
    why = end or _why_not(status)
    return PodInfo(
        name=meta["name"],
        cluster=labels.get("ray.io/cluster", ""),
        group=labels.get("ray.io/group", labels.get("ray.io/node-type", "")),
        node=pod["spec"].get("nodeName") or "",
        state="ending" if end else "not ready" if phase == "Running" and why else phase.lower(),
        why=why,
    )


def _why_not(status: KubeObject) -> str:
    """Return why a pod does not run: what its containers, then what the scheduler, then what Kubernetes says."""
    for each in [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]:
        state, last = each.get("state") or {}, each.get("lastState") or {}
        waiting = state.get("waiting") or {}
        if waiting and waiting.get("reason") not in ("ContainerCreating", "PodInitializing"):
            ended = (last.get("terminated") or {}).get("reason", "")
            reason = "OOMKilled" if ended == "OOMKilled" else waiting.get("reason", "waiting")
            return f"{reason}{_reason(waiting.get('message', ''))}{_reason(_ADVICE.get(reason, ''))}"
    conditions = {each["type"]: each for each in status.get("conditions") or ()}
    for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready"):
        condition = conditions.get(kind)
        if condition is not None and condition["status"] != "True":
            return condition.get("message") or condition.get("reason") or f"{kind} is {condition['status']}"
    return "" if status.get("phase") == "Running" else str(status.get("message") or status.get("reason") or "")


def _reason(text: str) -> str:
    return f": {text}" if text else ""
