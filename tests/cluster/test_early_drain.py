from __future__ import annotations

import queue

import pytest

from tests.kube.api_server import FakeApiServer
from tests.kube.objects import CLUSTER, node

# Importing Ray warns of its own use of pydantic; so it is imported in here.
pytestmark = pytest.mark.filterwarnings("ignore")


def test_nodes_of_pods_that_end_are_drained_once_and_the_head_never():
    from cluster.early_drain import nodes_to_drain
    from cluster.ray_nodes import RayNode

    head, going, gone_on, stays = (
        RayNode(node_id=f"id-{name}", address=f"10.0.0.{name}", is_head=name == 0) for name in range(4)
    )
    ends = {"10.0.0.0": "cordoned", "10.0.0.1": "cordoned", "10.0.0.2": "cordoned"}
    assert nodes_to_drain(ends, [head, going, gone_on, stays], {"id-2"}) == [(going, "cordoned")]


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
