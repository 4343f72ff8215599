"""The fake API server behaves as Kubernetes' own client expects of a real one."""

from __future__ import annotations

import ssl
import urllib.request

import pytest
from kubernetes import client, watch

from tests.certificates import Authority
from tests.kube.api_server import MOST_LISTS, FakeApiServer
from tests.kube.objects import CLUSTER, NAMESPACE, node, pod

pytest_plugins = ("tests.kube.fixtures",)


def test_lists_what_a_selector_names(server, core):
    server.put("pods", pod("a", "n1", "10.0.0.1"))
    found = core.list_namespaced_pod(NAMESPACE, label_selector=f"ray.io/cluster={CLUSTER}")
    assert [each.metadata.name for each in found.items] == ["a"]
    assert core.list_namespaced_pod(NAMESPACE, label_selector="ray.io/cluster=another").items == []
    assert core.list_namespaced_pod("elsewhere").items == []


def test_pages_of_a_list_are_of_one_moment_and_a_watch_tells_what_came_after(server, core):
    for name in ("n1", "n2", "n3"):
        server.put("nodes", node(name))
    first = core.list_node(limit=2)
    server.put("nodes", node("n4"))
    server.delete("nodes", "n3")
    rest = core.list_node(limit=2, _continue=first.metadata._continue)
    assert [each.metadata.name for each in (*first.items, *rest.items)] == ["n1", "n2", "n3"]
    assert rest.metadata._continue is None
    version = rest.metadata.resource_version
    assert version == first.metadata.resource_version
    events = watch.Watch().stream(core.list_node, resource_version=version, timeout_seconds=1)
    seen = [(each["type"], each["object"].metadata.name) for each in (next(events), next(events))]
    assert seen == [("ADDED", "n4"), ("DELETED", "n3")]


def test_forgets_the_next_page_of_all_but_the_newest_lists(server, core):
    for name in ("n1", "n2"):
        server.put("nodes", node(name))
    first, *_, last = [core.list_node(limit=1).metadata._continue for _ in range(MOST_LISTS + 1)]
    assert len(core.list_node(_continue=last).items) == 1
    with pytest.raises(client.ApiException, match="410"):
        core.list_node(_continue=first)


def test_a_watch_begins_after_its_version(server, core):
    server.put("nodes", node("n1"))
    version = core.list_node().metadata.resource_version
    server.put("nodes", node("n1", "karpenter.sh/disrupted"))
    server.delete("nodes", "n1")
    events = watch.Watch().stream(core.list_node, resource_version=version, timeout_seconds=1)
    assert [each["type"] for each in (next(events), next(events))] == ["MODIFIED", "DELETED"]


def test_a_watch_from_a_forgotten_version_is_told_410(server, core):
    version = core.list_node().metadata.resource_version
    server.compact()
    with pytest.raises(client.ApiException) as refused:
        list(watch.Watch().stream(core.list_node, resource_version=version, timeout_seconds=1))
    assert refused.value.status == 410


def test_refuses_what_is_forbidden_and_as_often_as_told(server, core):
    server.refuse(429)
    with pytest.raises(client.ApiException, match="429"):
        core.list_node()
    core.list_node()
    server.forbid("nodes")
    with pytest.raises(client.ApiException, match="403"):
        core.list_node()


def test_replaces_parts_that_are_there(server):
    server.put("pods", pod("a", "n1", "10.0.0.1"))
    place = {"op": "replace", "path": "/status/conditions", "value": ["new"]}
    version = server.get("pods", "a", NAMESPACE)["metadata"]["resourceVersion"]
    patched = server.patch("pods", "a", NAMESPACE, [place])
    assert (patched["status"]["conditions"], patched["metadata"]["resourceVersion"] > version) == (["new"], True)
    for path in ("/status/hosts", "/state/conditions"):
        with pytest.raises(KeyError):
            server.patch("pods", "a", NAMESPACE, [{**place, "path": path}])


def test_encrypts_with_its_certificate(tmp_path):
    authority = Authority(tmp_path)
    with FakeApiServer(authority.sign("api")) as server:
        trusting = ssl.create_default_context(cafile=str(authority.ca))
        with urllib.request.urlopen(f"{server.url}/version/", context=trusting, timeout=10) as answer:
            assert answer.status == 200
