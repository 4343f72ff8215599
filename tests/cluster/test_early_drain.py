from __future__ import annotations

import pytest

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
