"""The fake API server behaves as Kubernetes' own client expects of a real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kubernetes import client, watch

from tests.kube.api_server import FakeApiServer
from tests.kube.objects import CLUSTER, NAMESPACE, node, pod


@pytest.fixture
def server() -> Iterator[FakeApiServer]:
    with FakeApiServer() as server:
        yield server


@pytest.fixture
def core(server) -> Iterator[client.CoreV1Api]:
    with client.ApiClient(client.Configuration(host=server.url)) as api:
        yield client.CoreV1Api(api)


def test_lists_what_a_selector_names(server, core):
    server.put("pods", pod("a", "n1", "10.0.0.1"))
    found = core.list_namespaced_pod(NAMESPACE, label_selector=f"ray.io/cluster={CLUSTER}")
    assert [each.metadata.name for each in found.items] == ["a"]
    assert core.list_namespaced_pod(NAMESPACE, label_selector="ray.io/cluster=another").items == []
    assert core.list_namespaced_pod("elsewhere").items == []


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
