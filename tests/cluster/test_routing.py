"""Which replica Ray Serve is told to send a call to, and when it is made to ask first."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

# Importing Ray Serve warns of its own use of pydantic; so it is imported in here.
pytestmark = pytest.mark.filterwarnings("ignore")


def choose(
    method: str, *args: object, names: tuple[str, ...] = ("a", "b", "c"), draining: frozenset[str] = frozenset()
):
    """Return the names chosen among replicas that Serve knows to be idle, and those of which it still thinks so.

    Replica a runs on node-a, and so on.
    """
    from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID
    from ray.serve.request_router import PendingRequest

    from cluster.routing import RouterChoice

    async def run() -> tuple[set[str], set[str]]:
        deployment = DeploymentID(name="Router", app_name="herd")
        choice = RouterChoice(
            deployment_id=deployment,
            handle_source=DeploymentHandleSource.REPLICA,
            use_replica_queue_len_cache=True,
        )
        choice._draining_nodes = draining
        replicas = [SimpleNamespace(replica_id=ReplicaID(name, deployment), node_id=f"node-{name}") for name in names]
        cache = choice.replica_queue_len_cache
        for each in replicas:
            cache.update(each.replica_id, 0)
        call = PendingRequest(args=list(args), kwargs={}, metadata=SimpleNamespace(call_method=method))
        (group,) = await choice.choose_replicas(replicas, call)
        known = {each.replica_id.unique_id for each in replicas if cache.get(each.replica_id) is not None}
        return {each.replica_id.unique_id for each in group}, known

    return asyncio.run(run())


def test_an_ordinary_sequence_gets_two_to_choose_from_and_what_serve_knows_is_enough():
    chosen, known = choose("generate", "request", "door", False)
    assert len(chosen) == 2
    assert known == {"a", "b", "c"}


@pytest.mark.parametrize("call", [("generate", "request", "door", True), ("describe",)])
def test_a_careful_call_is_sent_only_where_somebody_answers(call):
    chosen, known = choose(*call)
    assert len(chosen) == 2
    assert known == {"a", "b", "c"} - chosen


def test_a_carrier_goes_to_the_router_it_names_or_to_one_that_says_it_is_gone():
    assert choose("carry", "b", "door")[0] == {"b"}
    assert choose("carry", "z", "door")[0] == {"a"}
    assert choose("carry", "z", "door", names=())[0] == set()


def test_routers_on_nodes_that_drain_are_passed_over_while_there_are_others():
    call = ("generate", "request", "door", False)
    assert choose(*call, draining=frozenset({"node-a", "node-b"}))[0] == {"c"}
    assert len(choose(*call, draining=frozenset({"node-a", "node-b", "node-c"}))[0]) == 2


def test_a_carrier_reaches_its_router_on_a_node_that_drains():
    assert choose("carry", "b", "door", draining=frozenset({"node-b"}))[0] == {"b"}
