"""What an API server says that it serves: kubectl asks before it asks for anything else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Object = dict[str, Any]
CORE_KINDS = {"events": "Event", "nodes": "Node", "pods": "Pod", "secrets": "Secret", "services": "Service"}
_RAY = {"groupVersion": "ray.io/v1", "version": "v1"}


def discover(path: str, custom: Iterable[Object]) -> Object | None:
    """Return the document at a path; None: there is none.

    Args:
        path: without its query.
        custom: `spec.names` of the custom resources, all of them Ray's.
    """
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        group = {"name": "ray.io", "versions": [_RAY], "preferredVersion": _RAY}
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [group]}
    if path == "/api/v1":
        return _resources("v1", CORE_KINDS)
    if path == "/apis/ray.io/v1":
        return _resources("ray.io/v1", {each["plural"]: each.get("kind", "") for each in custom})
    return None


def with_kind(plural: str, found: Object, custom: Iterable[Object]) -> Object:
    """Return an object with its kind and version, as far as they are known."""
    kinds = {each["plural"]: each.get("kind", "") for each in custom}
    if plural in kinds:
        return {"apiVersion": "ray.io/v1", "kind": kinds[plural], **found}
    return {"apiVersion": "v1", "kind": CORE_KINDS[plural], **found} if plural in CORE_KINDS else found


def list_with_kind(plural: str, found: Object, custom: Iterable[Object]) -> Object:
    """Return a list of objects with its kind and version."""
    of_one = {"apiVersion": "v1", "kind": ""} | with_kind(plural, {}, custom)
    return {**of_one, "kind": f"{of_one['kind']}List", **found}


def _resources(version: str, kinds: dict[str, str]) -> Object | None:
    if not kinds:
        return None
    verbs = ["get", "list", "watch", "patch"]
    resources = [
        {"name": plural, "singularName": kind.lower(), "namespaced": kind != "Node", "kind": kind, "verbs": verbs}
        for plural, kind in kinds.items()
    ]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": version, "resources": resources}
