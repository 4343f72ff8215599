"""Drains Ray nodes whose end Kubernetes foretells, before their pods are told to end.

taint, eviction, deletion -> which pods -> which Ray nodes -> marked as draining -> Ray Serve moves their replicas
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

from ray.exceptions import RayError

from cluster.disruption import KubeObject, PodEnd, foretold_ends
from cluster.drain_times import DRAIN_VARIABLE, RAYS_DRAIN_S
from cluster.kubernetes import Mirror, connect, own_namespace
from cluster.ray_nodes import RayNode, drain_node, live_nodes
from protos.errors import BadConfig

_LOG = logging.getLogger(__name__)
_PERIOD_S = 1.0
"""Seconds between two looks at Ray's nodes while an end is foretold: a pod's node may join Ray after that."""
_META = ("name", "deletionTimestamp", "deletionGracePeriodSeconds")
_CLUSTER_NAME = "RAY_CLUSTER_NAME"
"""KubeRay sets it in every pod of a RayCluster."""


def is_in_kubernetes() -> bool:
    """Tell whether this process runs in a pod of a RayCluster."""
    return "KUBERNETES_SERVICE_HOST" in os.environ and _CLUSTER_NAME in os.environ


def nodes_to_drain(
    ends: Mapping[str, PodEnd], nodes: Iterable[RayNode], drained: Mapping[str, PodEnd]
) -> list[tuple[RayNode, PodEnd]]:
    """Return the Ray nodes to mark, each with its pod's end.

    One that was marked before its pod was told to end is marked again then: now there is a deadline. Its own Ray says
    so too when it gets SIGTERM; but the last word counts, and that may be one without, said at the same moment.

    Args:
        ends: by the address of each pod that is about to go.
        nodes: that live.
        drained: what those marked already were marked for, by their ids.
    """
    # The head cannot be moved: what drains it is its own end.
    found = [(node, ends[node.address]) for node in nodes if node.address in ends and not node.is_head]
    return [
        (node, end)
        for node, end in found
        if node.node_id not in drained or (end.told_at_s is not None and drained[node.node_id].told_at_s is None)
    ]


def deadline_s(end: PodEnd, drain_s: float, now_s: float) -> float | None:
    """Return when the Ray node of a pod that was told to end is ended, in seconds since 1970; None: it was not.

    Args:
        end: of the pod.
        drain_s: seconds that its Ray takes at most.
        now_s: in seconds since 1970: the API server's clock may be ahead of this one.
    """
    if end.told_at_s is None or end.killed_at_s is None:
        return None
    return min(min(end.told_at_s, now_s) + drain_s, end.killed_at_s)


class EarlyDrain:
    """A thread that marks Ray nodes as draining as soon as Kubernetes says that their pods are about to go.

    Args:
        note: called with a node's id and what became of it, from the thread.
        connect_to: makes the `kubernetes.client.ApiClient`.
        labels: which labels of nodes to follow, too.
        on_labels: called with these, by node, from the thread, whenever there are others.
    """

    def __init__(
        self,
        note: Callable[[str, str], None],
        connect_to: Callable[[], Any] = connect,
        *,
        labels: Collection[str] = (),
        on_labels: Callable[[Mapping[str, Mapping[str, str]]], None] = lambda labels: None,
    ) -> None:
        self._note = note
        self._labels, self._on_labels = labels, on_labels
        self._known_labels: Mapping[str, Mapping[str, str]] = {}
        self._connect = connect_to
        self._drained: dict[str, PodEnd] = {}
        self._drain_s = float(os.environ.get(DRAIN_VARIABLE, RAYS_DRAIN_S))
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._mirrors: list[Mirror] = []
        self._thread = threading.Thread(target=self._run, name="early-drain", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End. Blocks for as long as one request may take. Idempotent."""
        self._stopping.set()
        self._changed.set()
        self._thread.join()
        for mirror in self._mirrors:
            mirror.stop()

    def _run(self) -> None:
        try:
            pods, nodes = self._mirrors = self._follow()
        except BadConfig as error:
            _LOG.warning("nodes are not drained before their end: %s", error.message)
            return
        ends: dict[str, PodEnd] = {}
        while not self._stopping.is_set():
            # While nothing is foretold there is nothing to look after.
            self._changed.wait(_PERIOD_S if ends else None)
            self._changed.clear()
            self._tell_labels(nodes.objects)
            ends = foretold_ends(pods.objects, nodes.objects)
            if ends and not self._stopping.is_set():
                self._drain(ends)

    def _follow(self) -> list[Mirror]:
        """Begin to follow the pods of this RayCluster, and all nodes.

        Raises:
            BadConfig: it is not known where the API server is.
        """
        from kubernetes import client

        core = client.CoreV1Api(self._connect())
        selector = f"ray.io/cluster={os.environ[_CLUSTER_NAME]}"
        pods = Mirror(
            "pods",
            core.list_namespaced_pod,
            keep=_pod_in_short,
            on_change=self._changed.set,
            namespace=own_namespace(),
            label_selector=selector,
        )
        keep_node = partial(_node_in_short, labels=self._labels)
        nodes = Mirror("nodes", core.list_node, keep=keep_node, on_change=self._changed.set)
        for mirror in (pods, nodes):
            mirror.start()
        return [pods, nodes]

    def _tell_labels(self, nodes: Iterable[KubeObject]) -> None:
        found = {node["metadata"]["name"]: node["metadata"]["labels"] for node in nodes}
        if found != self._known_labels:
            self._known_labels = found
            self._on_labels(found)

    def _drain(self, ends: Mapping[str, PodEnd]) -> None:
        try:
            for node, end in nodes_to_drain(ends, live_nodes(), self._drained):
                drain_node(node.node_id, end.why, deadline_s(end, self._drain_s, time.time()))
                self._drained[node.node_id] = end
                _LOG.warning("Ray node %s at %s drains: %s", node.node_id, node.address, end.why)
                self._note(node.address, f"drains: {end.why}")
        except RayError as error:
            _LOG.warning("could not drain a node, the next look does: %s", error)


def _pod_in_short(pod: KubeObject) -> KubeObject:
    meta, status = pod["metadata"], pod.get("status") or {}
    return {
        "metadata": {name: meta[name] for name in _META if name in meta},
        "spec": {"nodeName": pod["spec"].get("nodeName")},
        "status": {name: status[name] for name in ("phase", "podIP", "conditions") if name in status},
    }


def _node_in_short(node: KubeObject, labels: Collection[str]) -> KubeObject:
    """Leave out images, addresses and the like: there may be thousands of nodes."""
    meta, spec = node["metadata"], node.get("spec") or {}
    found = meta.get("labels") or {}
    return {
        "metadata": {"name": meta["name"], "labels": {each: found[each] for each in labels if each in found}},
        "spec": {name: spec[name] for name in ("taints", "unschedulable") if name in spec},
    }
