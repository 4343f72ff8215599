"""What the chart says of pods, and what KubeRay 1.7 makes of that. Pure, but for running helm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from tests.chart.chart import groups, only, profile, render

RAY_PORT = 6379
HEAD = "head"
_GIB = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A readiness probe over HTTP."""

    path: str
    """Of the URL."""
    period_s: float
    """Seconds between two."""
    timeout_s: float
    """Seconds for an answer."""
    num_failures: int
    """In a row, after which a pod is not ready any more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PodGroup:
    """Pods that are alike: the head's, or a group of workers'."""

    name: str
    """Of the group."""
    component: str
    """As the chart labels its pods."""
    num_pods: int
    """How many there are."""
    environment: dict[str, str]
    """Of the container, but for what KubeRay adds; `{node}` stands for the name of the pod's node."""
    start: str
    """The command that KubeRay makes for the container's shell; `{head}` stands for the head's address."""
    grace_s: float
    """terminationGracePeriodSeconds."""
    probe: Probe | None
    """Where it asks Herd; None: it asks Ray alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rendered:
    """A release."""

    groups: tuple[PodGroup, ...]
    """The head's first."""
    application: dict[str, Any]
    """serveConfigV2."""
    settings: str
    """herd.yaml of the ConfigMap."""
    grpc_port: int
    """Of front doors."""
    http_port: int
    """Likewise."""


def render_release(assignments: Sequence[str], profile_name: str = "demo-cpu") -> Rendered:
    """Return what a profile renders.

    Args:
        assignments: for helm's --set.
        profile_name: one of `helm/ci`.
    """
    sets = [argument for each in assignments for argument in ("--set", each)]
    objects = render("--values", str(profile(profile_name)), *sets)
    service = only(objects, "RayService")["spec"]
    head = service["rayClusterConfig"]["headGroupSpec"]
    workers = groups(objects)
    ports = {each["name"]: each["containerPort"] for each in _container(workers["front-door"])["ports"]}
    return Rendered(
        groups=(_group(HEAD, head), *(_group(name, each) for name, each in workers.items())),
        application=yaml.safe_load(service["serveConfigV2"]),
        settings=only(objects, "ConfigMap")["data"]["herd.yaml"],
        grpc_port=ports["grpc"],
        http_port=ports["http"],
    )


def _group(name: str, group: dict[str, Any]) -> PodGroup:
    template, container = group["template"], _container(group)
    probe = container.get("readinessProbe", {})
    asks_herd = probe.get("httpGet", {}).get("port") == "http"
    return PodGroup(
        name=name,
        component=template["metadata"]["labels"]["app.kubernetes.io/component"],
        num_pods=group.get("replicas", 1),
        environment={each["name"]: "{node}" if "valueFrom" in each else each["value"] for each in container["env"]},
        start=_ray_start(group, is_head=name == HEAD),
        grace_s=template["spec"]["terminationGracePeriodSeconds"],
        probe=Probe(
            path=probe["httpGet"]["path"],
            period_s=probe["periodSeconds"],
            timeout_s=probe["timeoutSeconds"],
            num_failures=probe["failureThreshold"],
        )
        if asks_herd
        else None,
    )


def _container(group: dict[str, Any]) -> dict[str, Any]:
    container: dict[str, Any] = group["template"]["spec"]["containers"][0]
    return container


def _ray_start(group: dict[str, Any], *, is_head: bool) -> str:
    """Return the command as KubeRay's `generateRayStartCommand` does."""
    limits = _container(group)["resources"]["limits"]
    options = {
        "block": None,
        "dashboard-agent-listen-port": "52365",
        "memory": str(_bytes(limits["memory"])),
        "metrics-export-port": "8080",
        "num-cpus": limits["cpu"],
    }
    if "resources" in group:
        options["resources"] = "'" + json.dumps({name: float(each) for name, each in group["resources"].items()}) + "'"
    if not is_head:
        options["address"] = f"{{head}}:{RAY_PORT}"
    options |= group["rayStartParams"]
    words = [f"--{name}" if value is None else f"--{name}={value}" for name, value in sorted(options.items())]
    return " ".join(["ulimit -n 65536; ray start", *["--head"] * is_head, *words])


def _bytes(quantity: str) -> int:
    return int(quantity[:-2]) * _GIB[quantity[-2:]]
