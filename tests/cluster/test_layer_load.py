"""Load by layer: counted at a replica, carried by heartbeats, summed over replicas."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import torch

from cluster.expert_load import ExpertLoadMeter
from cluster.layer_load import LayerLoad, sum_layer_loads
from experts.batcher import BatcherLimits
from experts.replica import Replica
from experts.weights import ExpertWeights
from experts.work import Work
from models.checkpoint import open_checkpoint
from tests.models.checkpoint_files import write_hf


def load(experts: tuple[int, ...], rows: list[list[float]]) -> LayerLoad:
    return LayerLoad(layers=(1, 3), experts=experts, tokens_per_s_LE=np.array(rows, np.float32))


def test_copies_of_an_expert_add_up():
    total = sum_layer_loads([load((0, 2), [[1, 2], [3, 4]]), load((2, 3), [[10, 20], [30, 40]])])
    assert total is not None
    assert total.rows(5) == {1: [1, 0, 12, 20, 0], 3: [3, 0, 34, 40, 0]}


def test_no_report_is_no_load():
    assert sum_layer_loads([]) is None


def test_numbers_are_told_to_three_digits():
    assert load((0,), [[1234.5678], [0.0]]).rows(1) == {1: [1230.0], 3: [0.0]}


def test_a_heartbeat_of_all_experts_of_a_large_model_stays_small():
    large = LayerLoad(
        layers=tuple(range(48)), experts=tuple(range(128)), tokens_per_s_LE=np.ones((48, 128), np.float32)
    )
    assert len(pickle.dumps(large, protocol=5)) < 26_000


def test_a_meter_tells_what_each_expert_ran_in_each_layer_since_it_was_asked_last(tmp_path):
    weights = ExpertWeights.load(open_checkpoint(write_hf(tmp_path)), [0, 3], torch.float32)
    replica = Replica(weights, replica_id="a", limits=BatcherLimits())
    now = 0.0
    meter = ExpertLoadMeter(replica, group="g", host="h", spare_bytes=lambda: 0, clock=lambda: now)
    run(replica, 1, {0: 2, 3: 4})
    run(replica, 3, {3: 6})
    now = 2.0
    first = meter.report()
    now = 4.0
    second = meter.report()
    replica.batcher.close()
    assert first.layer_load is not None
    assert first.layer_load.rows(4) == {1: [1, 0, 0, 2], 3: [0, 0, 0, 3]}
    assert first.tokens_per_s == {0: 1, 3: 5}  # what placing looks at
    assert second.layer_load is not None
    assert not second.layer_load.tokens_per_s_LE.any()
    assert second.tokens_per_s == {0: 0, 3: 0}


def run(replica: Replica, layer: int, counts: dict[int, int]) -> None:
    done = threading.Event()
    num_tokens = sum(counts.values())
    work = Work(
        layer=layer,
        expert_ids=tuple(counts),
        token_counts=tuple(counts.values()),
        num_tokens=num_tokens,
        hidden_ND=torch.zeros(num_tokens, 32),
        arrived_s=replica.batcher.now(),
        deliver=lambda _: done.set(),
    )
    assert replica.batcher.submit(work) is not None or done.wait(20)
