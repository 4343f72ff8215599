"""A replica that follows what the directory wants of it, with real weights."""

from __future__ import annotations

import pytest
import torch

from cluster.directory import ExpertReplica
from cluster.holdings import Holdings
from experts.batcher import BatcherLimits
from experts.replica import Replica
from experts.weights import ExpertWeights
from models.checkpoint import open_checkpoint
from router.placement import ExpertHolder
from tests.experts.replica_client import wait_until


@pytest.fixture
def follow(demo_dir):
    """Start a replica of the demo model's experts 0 to 3 that follows; `follow()` returns (replica, holdings, said)."""
    stops = []

    def start(spare_bytes: int | None = None):
        weights = ExpertWeights.load(open_checkpoint(demo_dir), range(4), torch.float32, spare_bytes=spare_bytes)
        replica = Replica(weights, replica_id="it", limits=BatcherLimits())
        said: list[tuple[int, ...]] = []
        registered = ExpertReplica(
            holder=ExpertHolder(replica_id="it", address="it:1", expert_ids=(0, 1, 2, 3)),
            group="Experts-0",
            home_ids=(0, 1, 2, 3),
            weight_bytes=weights.weight_bytes,
            pid=1,
        )
        holdings = Holdings(
            replica, registered, lambda changed: said.append((changed.holder.expert_ids, weights.expert_ids)), 0.05
        )
        stops.extend((replica.batcher.close, holdings.stop))
        holdings.start()
        return weights, holdings, said

    yield start
    for stop in reversed(stops):
        stop()


def test_a_wanted_expert_is_loaded_before_it_is_announced(follow):
    weights, holdings, said = follow()
    holdings.want(frozenset({0, 1, 2, 3, 5}))
    wait_until(lambda: said)
    assert said == [((0, 1, 2, 3, 5), (0, 1, 2, 3, 5))]
    assert weights.expert_ids == (0, 1, 2, 3, 5)


def test_an_unwanted_copy_is_announced_as_gone_before_it_is_released(follow):
    weights, holdings, said = follow()
    holdings.want(frozenset({0, 1, 2, 3, 5}))
    wait_until(lambda: len(said) == 1)
    holdings.want(frozenset({0, 1, 2, 3}))
    wait_until(lambda: weights.expert_ids == (0, 1, 2, 3))
    assert said[1] == ((0, 1, 2, 3), (0, 1, 2, 3, 5))


def test_home_experts_stay_whatever_is_wanted(follow):
    weights, holdings, said = follow()
    holdings.want(frozenset({0, 6}))
    wait_until(lambda: said)
    assert weights.expert_ids == (0, 1, 2, 3, 6)


def test_a_copy_without_room_is_not_announced(follow):
    weights, holdings, said = follow(spare_bytes=0)
    holdings.want(frozenset({0, 1, 2, 3, 5}))
    holdings.stop()
    assert not said
    assert weights.expert_ids == (0, 1, 2, 3)
