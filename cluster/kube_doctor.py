"""What `herd doctor --kube` looks at: everything in a Kubernetes cluster that the chart needs, each with advice.

Read only. What may not be read is said, and is no failure: whoever asks need not be who installs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from cluster.disruption import KubeObject
from cluster.doctor import Finding, Verdict
from cluster.drain_times import DRAIN_VARIABLE, RAYS_DRAIN_S, ROUTER_SHUTDOWN_S, DrainTimes
from cluster.kubernetes import FORBIDDEN, ask, ask_items, status_of
from protos.errors import BadConfig, ReplicaUnavailable

OLDEST_KUBERAY = (1, 7, 0)
_GPU, _PRODUCT = "nvidia.com/gpu", "nvidia.com/gpu.product"
_OPERATOR = "app.kubernetes.io/name=kuberay-operator"
_MOST_NAMES = 5
_RAY_PODS = "ray.io/is-ray-node=yes"
_RIGHTS = (
    ("", "pods", ("get", "list", "watch"), "pods that are deleted or evicted are left only when they are told to end"),
    ("", "nodes", ("get", "list", "watch"), "nodes that are about to go are left only when their pods are told to end"),
    ("ray.io", "rayservices", ("get", "list"), "`herd status --kube` cannot show them"),
)
"""Group, resource, verbs, and what is lost without."""
_OF_NO_NAMESPACE = ("nodes",)


def examine_kubernetes(api: Any, namespace: str) -> list[Finding]:
    """Look at a cluster.

    Args:
        api: a `kubernetes.client.ApiClient`.
        namespace: where Herd is, or will be.
    """
    from kubernetes import client

    core, custom = client.CoreV1Api(api), client.CustomObjectsApi(api)
    claims, pods = core.list_namespaced_persistent_volume_claim, core.list_namespaced_pod
    reachable = _ask("API server", lambda: _api_server(ask(client.VersionApi(api).get_code)))
    if reachable.verdict is Verdict.FAIL:
        return [reachable]
    return [
        reachable,
        _ask("RayService", lambda: _custom_resources(custom)),
        _ask("KubeRay", lambda: kuberay_finding(_operators(client.AppsV1Api(api)))),
        _ask("GPU nodes", lambda: gpu_nodes_finding(ask_items(core.list_node))),
        _ask("volumes", lambda: volumes_finding(ask_items(claims, namespace=namespace))),
        *(_right(client.AuthorizationV1Api(api), namespace, *each) for each in _RIGHTS),
        _ask(
            "drain times",
            lambda: drain_finding(ask_items(pods, namespace=namespace, label_selector=_RAY_PODS)),
        ),
    ]


def _ask(subject: str, question: Callable[[], Finding]) -> Finding:
    """Return what a question finds, or what kept it from being answered."""
    try:
        return question()
    except ReplicaUnavailable as error:
        if status_of(error) in FORBIDDEN:
            text = f"expected the right to look, found {status_of(error)}: ask somebody who has it"
            return Finding(subject, Verdict.WARN, text)
        return Finding(subject, Verdict.FAIL, error.message)


def _api_server(answer: KubeObject) -> Finding:
    return Finding("API server", Verdict.OK, f"it answers, Kubernetes {answer['gitVersion']}")


def _custom_resources(custom: Any) -> Finding:
    subject, advice = "RayService", "install KubeRay's operator with its CRDs"
    try:
        resources = ask(custom.get_api_resources, group="ray.io", version="v1")["resources"]
    except ReplicaUnavailable as error:
        if status_of(error) != 404:
            raise
        resources = []
    if "rayservices" not in {each["name"] for each in resources}:
        return Finding(subject, Verdict.FAIL, f"expected the CRD rayservices of ray.io/v1, found none: {advice}")
    return Finding(subject, Verdict.OK, "its CRD is there, ray.io/v1")


def _operators(apps: Any) -> list[KubeObject]:
    found: list[KubeObject] = ask(apps.list_deployment_for_all_namespaces, label_selector=_OPERATOR)["items"]
    return found


def kuberay_finding(operators: Iterable[KubeObject]) -> Finding:
    """Return what there is to say of KubeRay's operators: one that runs, and not too old.

    Args:
        operators: their Deployments.
    """
    oldest = ".".join(map(str, OLDEST_KUBERAY))
    found = list(operators)
    if not found:
        return Finding(
            "KubeRay",
            Verdict.FAIL,
            f"expected its operator, {oldest} or newer, found no Deployment labelled {_OPERATOR}: install it",
        )
    for each in found:
        image = each["spec"]["template"]["spec"]["containers"][0]["image"]
        match = re.search(r":v?(\d+)\.(\d+)\.(\d+)", image)
        if match is None:
            return Finding(
                "KubeRay",
                Verdict.WARN,
                f"expected a version in its image's tag, found {image}: see that it is {oldest}",
            )
        if tuple(map(int, match.groups())) < OLDEST_KUBERAY:
            return Finding(
                "KubeRay", Verdict.FAIL, f"expected {oldest} or newer, found {image}: upgrade it, CRDs first"
            )
        if not (each.get("status") or {}).get("readyReplicas"):
            meta = each["metadata"]
            text = (
                "expected its operator to run, found none ready: "
                f"kubectl -n {meta['namespace']} describe deployment {meta['name']}"
            )
            return Finding("KubeRay", Verdict.FAIL, text)
    return Finding("KubeRay", Verdict.OK, f"its operator runs, {image}")


def gpu_nodes_finding(nodes: Iterable[KubeObject]) -> Finding:
    """Return which GPUs the cluster's nodes have, by product."""
    num_gpus: Counter[str] = Counter()
    unnamed = []
    for node in nodes:
        count = int(((node.get("status") or {}).get("allocatable") or {}).get(_GPU, 0))
        if not count:
            continue
        product = (node["metadata"].get("labels") or {}).get(_PRODUCT)
        num_gpus[product or "of unknown kind"] += count
        if product is None:
            unnamed.append(node["metadata"]["name"])
    if not num_gpus:
        text = f"none has {_GPU} now: enough for profiles on CPUs; else add nodes, and NVIDIA's device plugin"
        return Finding("GPU nodes", Verdict.WARN, text)
    text = ", ".join(f"{count} x {product}" for product, count in sorted(num_gpus.items()))
    if unnamed:
        text += f"; expected the label {_PRODUCT}, found none at {_some(unnamed)}: install gpu-feature-discovery"
        return Finding("GPU nodes", Verdict.WARN, text)
    return Finding("GPU nodes", Verdict.OK, text)


def volumes_finding(claims: Iterable[KubeObject]) -> Finding:
    """Return whether every claim of a volume has one."""
    found = list(claims)
    waiting = [
        f"{each['metadata']['name']} ({each['status']['phase']})"
        for each in found
        if each["status"]["phase"] != "Bound"
    ]
    if waiting:
        text = (
            f"expected every PersistentVolumeClaim to be bound, found {_some(waiting)}: `kubectl describe pvc` "
            "says why; one whose class waits for its first consumer is bound when a pod uses it"
        )
        return Finding("volumes", Verdict.WARN, text)
    return Finding("volumes", Verdict.OK, f"{len(found)} PersistentVolumeClaims, all bound")


def _some(names: list[str]) -> str:
    """Return names for people, not thousands of them."""
    rest = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {rest} more" if rest > 0 else "")


def drain_finding(pods: Iterable[KubeObject]) -> Finding:
    """Return whether the pods of Ray are given the time to leave their nodes."""
    num_pods = 0
    for pod in pods:
        num_pods += 1
        spec = pod["spec"]
        times = DrainTimes(
            longest_s=0.0,  # the settings say these two, and they are not read here
            lame_duck_s=0.0,
            shutdown_s=ROUTER_SHUTDOWN_S,
            drain_s=_drain_s(spec["containers"]),
            grace_s=float(spec.get("terminationGracePeriodSeconds", 30)),
        )
        try:
            times.check()
        except BadConfig as error:
            return Finding("drain times", Verdict.WARN, f"pod {pod['metadata']['name']}: {error.message}")
    if not num_pods:
        return Finding("drain times", Verdict.OK, "no pod of Ray runs here yet")
    return Finding("drain times", Verdict.OK, f"grace is longer than drain in all {num_pods} pods of Ray")


def _drain_s(containers: Iterable[KubeObject]) -> float:
    """Return what a pod's environment tells Ray, or what Ray takes without."""
    for container in containers:
        for variable in container.get("env") or ():
            if variable["name"] == DRAIN_VARIABLE:
                with suppress(ValueError, KeyError):  # no number, or one from elsewhere
                    return float(variable["value"])
    return RAYS_DRAIN_S


def _right(authorization: Any, namespace: str, group: str, resource: str, verbs: tuple[str, ...], loss: str) -> Finding:
    """Return whether who asks may do something, by asking the API server for each verb."""
    subject = f"right: {resource}"
    missing = []
    for verb in verbs:
        attributes = {"group": group, "resource": resource, "verb": verb, "namespace": namespace}
        if resource in _OF_NO_NAMESPACE:
            del attributes["namespace"]  # a right in one namespace would be told as one to all of them
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }
        try:
            answer = ask(authorization.create_self_subject_access_review, body=body)
        except ReplicaUnavailable as error:
            return Finding(subject, Verdict.FAIL, error.message)
        if not answer["status"]["allowed"]:
            missing.append(verb)
    if missing:
        found = f"expected the right to {', '.join(missing)} them, found none: without it, {loss}"
        return Finding(subject, Verdict.WARN, f"{found}; the chart's rbac gives it")
    return Finding(subject, Verdict.OK, f"{', '.join(verbs)}, for who asks here")
