"""What a dispatch to another process takes by each lane: measured wherever there is a lane."""

from __future__ import annotations

import torch

from benchmarks.split_lanes import measure_split


def test_every_lane_of_this_machine_is_measured_and_the_others_are_given_a_reason():
    one, eight = measure_split([1, 8], (32, 24, 4), dtype=torch.float32, rounds=1, repeats=1)
    assert (one.num_tokens, eight.num_tokens) == (1, 8)
    assert one.seconds.keys() == eight.seconds.keys() == {"inline", "shm", "local"}
    assert min(*one.seconds.values(), *eight.seconds.values()) > 0
    assert one.refused == {"cuda-ipc": "tensors on cpu travel shm"}
