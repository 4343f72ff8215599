from __future__ import annotations

import queue

import pytest

from cluster.disruption import PodEnd
from tests.kube.api_server import FakeApiServer
from tests.kube.objects import CLUSTER, node

# Importing Ray warns of its own use of pydantic; so it is imported in here.
pytestmark = pytest.mark.filterwarnings("ignore")

FORETOLD = PodEnd(why="cordoned")
TOLD = PodEnd(why="deleted", told_at_s=1000.0, killed_at_s=1038.0)


def nodes(*numbers: int) -> list:
    """Return Ray nodes at 10.0.0.NUMBER; number 0 is the head."""
    from cluster.ray_nodes import RayNode

    return [RayNode(node_id=f"id-{each}", address=f"10.0.0.{each}", is_head=each == 0) for each in numbers]


def test_nodes_of_pods_that_end_are_drained_once_and_the_head_never():
    from cluster.early_drain import nodes_to_drain

    head, going, gone_on, stays = nodes(0, 1, 2, 3)
    ends = dict.fromkeys(("10.0.0.0", "10.0.0.1", "10.0.0.2"), FORETOLD)
    assert nodes_to_drain(ends, [head, going, gone_on, stays], {"id-2": FORETOLD}) == [(going, FORETOLD)]


def test_a_node_that_drains_already_is_given_its_deadline_once_its_pod_is_told_to_end():
    from cluster.early_drain import nodes_to_drain

    (going,) = nodes(1)
    ends = {"10.0.0.1": TOLD}
    assert nodes_to_drain(ends, [going], {"id-1": FORETOLD}) == [(going, TOLD)]
    assert nodes_to_drain(ends, [going], {"id-1": TOLD}) == []


@pytest.mark.parametrize(
    ("end", "drain_s", "now_s", "expected"),
    [
        (FORETOLD, 23.0, 1001.0, None),
        (TOLD, 23.0, 1001.0, 1023.0),
        (TOLD, 60.0, 1001.0, TOLD.killed_at_s),
        (TOLD, 23.0, 990.0, 1013.0),
    ],
    ids=["not told to end", "told", "killed before its Ray ends", "told by a clock that is ahead"],
)
def test_a_deadline_is_when_ray_ends_the_node(end, drain_s, now_s, expected):
    from cluster.early_drain import deadline_s

    assert deadline_s(end, drain_s, now_s) == expected


def test_the_labels_that_make_nodes_near_are_told_whenever_there_are_others(monkeypatch):
    from kubernetes import client

    from cluster.early_drain import EarlyDrain

    monkeypatch.setenv("RAY_CLUSTER_NAME", CLUSTER)
    told: queue.Queue = queue.Queue()
    with FakeApiServer() as server:
        server.put("nodes", node("n1", labels={"zone": "a", "arch": "amd64"}))
        api = client.ApiClient(client.Configuration(host=server.url, retries=False))
        drain = EarlyDrain(lambda name, text: None, lambda: api, labels=("zone", "rack"), on_labels=told.put)
        drain.start()
        try:
            assert told.get(timeout=20) == {"n1": {"zone": "a"}}
            server.put("nodes", node("n1", labels={"zone": "a", "arch": "other"}))
            server.put("nodes", node("n2", labels={"rack": "7"}))
            assert told.get(timeout=20) == {"n1": {"zone": "a"}, "n2": {"rack": "7"}}
        finally:
            drain.stop()
