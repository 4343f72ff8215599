from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from kubernetes import client

from cluster import kubernetes
from cluster.kubernetes import Mirror, ask, connect, own_namespace, pause_s, status_of
from protos.errors import ReplicaUnavailable
from tests.kube.api_server import FakeApiServer
from tests.kube.kubeconfig import write_kubeconfig
from tests.kube.objects import CLUSTER, NAMESPACE, node, pod

pytest_plugins = ("tests.kube.fixtures",)

_WAIT_S = 20.0


class Followed:
    """A Mirror, and a way to wait for what it comes to know."""

    def __init__(self, kind: str, list_, **options: str) -> None:
        self._changed = threading.Condition()
        self.mirror = Mirror(kind, list_, keep=lambda each: each, on_change=self._note, **options)

    def _note(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def wait(self, holds: Callable[[], bool]) -> None:
        give_up_at = time.monotonic() + _WAIT_S
        with self._changed:
            while not holds():
                assert time.monotonic() < give_up_at
                self._changed.wait(0.05)

    def wait_names(self, *names: str) -> None:
        self.wait(lambda: sorted(each["metadata"]["name"] for each in self.mirror.objects) == sorted(names))


@pytest.fixture
def nodes(server, core) -> Iterator[Followed]:
    """Follows the nodes, of which there is one."""
    server.put("nodes", node("n1"))
    followed = Followed("nodes", core.list_node)
    followed.mirror.start()
    followed.wait_names("n1")
    yield followed
    followed.mirror.stop()


def wait_until(holds: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + _WAIT_S
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.01)


def wait_for_watch(server: FakeApiServer, num_watches: int = 1) -> None:
    wait_until(lambda: sum("watch=" in each for each in server.requests) >= num_watches)


def test_follows_what_comes_changes_and_goes(server, nodes):
    server.put("nodes", node("n2"))
    nodes.wait_names("n1", "n2")
    server.put("nodes", node("n2", "karpenter.sh/disrupted"))
    nodes.wait(lambda: any(each["spec"].get("taints") for each in nodes.mirror.objects))
    server.delete("nodes", "n1")
    nodes.wait_names("n2")


def test_follows_only_what_its_selector_names(server, core):
    other = pod("other", "n1", "10.0.0.2")
    other["metadata"]["labels"] = {"ray.io/cluster": "another"}
    server.put("pods", other)
    pods = Followed("pods", core.list_namespaced_pod, namespace=NAMESPACE, label_selector=f"ray.io/cluster={CLUSTER}")
    pods.mirror.start()
    server.put("pods", pod("mine", "n1", "10.0.0.1"))
    pods.wait_names("mine")
    pods.mirror.stop()


def test_lists_anew_when_its_version_is_forgotten(server, nodes):
    wait_for_watch(server)
    server.put("nodes", node("n2"))
    nodes.wait_names("n1", "n2")
    server.compact()
    server.delete("nodes", "n1")
    server.compact()
    server.drop_streams()
    nodes.wait_names("n2")


def test_lists_thousands_page_by_page(server, core, monkeypatch):
    monkeypatch.setattr(kubernetes, "_PAGE", 2)
    names = [f"n{number}" for number in range(5)]
    for name in names:
        server.put("nodes", node(name))
    nodes = Followed("nodes", core.list_node)
    nodes.mirror.start()
    nodes.wait_names(*names)
    nodes.mirror.stop()
    assert sum("limit=2" in each for each in server.requests) == 3


def test_hears_of_what_changes_between_two_pages(server, core, monkeypatch):
    monkeypatch.setattr(kubernetes, "_PAGE", 1)
    for name in ("n1", "n2"):
        server.put("nodes", node(name))

    def list_(**options):
        page = core.list_node(**options)
        if options.get("limit") and "_continue" not in options:
            server.put("nodes", node("n0"))
            server.delete("nodes", "n2")
        return page

    nodes = Followed("nodes", list_)
    nodes.mirror.start()
    nodes.wait_names("n0", "n1")
    nodes.mirror.stop()


def test_a_list_whose_next_page_is_forgotten_begins_anew(server, core, monkeypatch):
    monkeypatch.setattr(kubernetes, "_PAGE", 1)
    server.put("nodes", node("n1"))
    server.put("nodes", node("n2"))
    pages = kubernetes.ask_pages(core.list_node)
    next(pages)
    server.compact()
    with pytest.raises(ReplicaUnavailable) as refused:
        next(pages)
    assert status_of(refused.value) == 410
    assert [each["metadata"]["name"] for each in kubernetes.ask_items(core.list_node)] == ["n1", "n2"]


def test_what_is_not_kept_of_an_object_may_change_unheard(server, core):
    server.put("nodes", node("n1"))
    heard = []
    mirror = Mirror(
        "nodes",
        core.list_node,
        keep=lambda each: {"metadata": {"name": each["metadata"]["name"]}, "spec": each["spec"]},
        on_change=lambda: heard.append(mirror.objects),
    )
    mirror.start()
    wait_for_watch(server)
    server.put("nodes", node("n1", gpus=8))
    server.put("nodes", node("n1", "karpenter.sh/disrupted"))
    wait_until(lambda: any(each["spec"].get("taints") for each in mirror.objects))
    mirror.stop()
    assert len(heard) == 2


def test_goes_on_after_a_dropped_stream_without_listing_anew(server, nodes):
    wait_for_watch(server)
    server.drop_streams()
    wait_for_watch(server, 2)
    server.put("nodes", node("n2"))
    nodes.wait_names("n1", "n2")
    assert sum("watch=" not in each for each in server.requests) == 1


def test_goes_on_after_refusals(server, core):
    server.put("nodes", node("n1"))
    server.refuse(429)
    server.refuse(500)
    nodes = Followed("nodes", core.list_node)
    nodes.mirror.start()
    nodes.wait_names("n1")
    nodes.mirror.stop()


def test_says_once_that_the_server_is_away_and_goes_on_when_it_is_back(server, nodes, caplog):
    wait_for_watch(server)
    with caplog.at_level(logging.WARNING, logger="cluster.kubernetes"):
        server.go_away()
        nodes.wait(lambda: nodes.mirror._num_failures >= 2)
        assert "n1" in nodes.mirror.objects[0]["metadata"]["name"]
        with server:
            server.put("nodes", node("n2"))
            nodes.wait_names("n1", "n2")
            assert nodes.mirror.problem == ""
            told = [each.getMessage() for each in caplog.records]
    assert sum("cannot watch" in each for each in told) == 1


def test_says_which_right_is_missing(server, core):
    server.forbid("nodes")
    nodes = Followed("nodes", core.list_node)
    nodes.mirror.start()
    nodes.wait(lambda: bool(nodes.mirror.problem))
    nodes.mirror.stop()
    assert "get, list and watch nodes" in nodes.mirror.problem


def test_an_answer_that_is_cut_short_is_asked_for_again(server, core):
    server.put("nodes", node("n1"))
    server.cut_short()
    nodes = Followed("nodes", core.list_node)
    nodes.mirror.start()
    nodes.wait_names("n1")
    nodes.mirror.stop()


def test_pauses_grow_and_are_bounded():
    away = ReplicaUnavailable("away")
    assert [pause_s(failures, away) for failures in (1, 2, 3, 100)] == [0.25, 0.5, 1.0, 15.0]


def test_a_server_that_asks_for_a_long_pause_gets_a_bounded_one(server, core):
    server.refuse(429, retry_after="3600")
    with pytest.raises(ReplicaUnavailable) as refused:
        ask(core.list_node)
    assert status_of(refused.value) == 429
    assert refused.value.retry_after_ms == 3_600_000
    assert pause_s(1, refused.value) == 15.0


def test_connects_to_what_kubeconfig_names(server, tmp_path, monkeypatch):
    server.put("nodes", node("n1"))
    monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path, server.url)))
    assert own_namespace() == NAMESPACE
    with connect() as api:
        assert ask(client.CoreV1Api(api).list_node)["items"][0]["metadata"]["name"] == "n1"
