"""When the last replica goes, and when the first one comes back."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from cluster.scaling_needs import FrontDoorStats
from cluster.scaling_to_zero import Activities, Activity, activities_of, last_replica

ZERO_AFTER_S = 300.0


def door(sequences: float, idle_s: float, at_s: float = 100.0) -> FrontDoorStats:
    return FrontDoorStats(at_s=at_s, sequences=sequences, queued_prompt_tokens=0.0, idle_s=idle_s)


@pytest.mark.parametrize(
    ("doors", "sequences", "idle_s"),
    [
        ([door(0, 400)], 0, 400),
        ([door(0, 400), door(0, 20)], 0, 20),
        ([door(0, 400), door(3, 0)], 3, 0),
        ([door(0, 400), None], 0, None),  # one that has not reported may have anything
        ([door(2, 0), None], 2, None),  # but does not hide what another has
        ([door(0, 400), door(0, 400, at_s=94.0)], 0, None),
        ([door(0, 400), door(5, 0, at_s=94.0)], 0, None),
        ([], 0, None),
    ],
)
def test_front_doors_speak_together(doors, sequences, idle_s):
    assert activities_of(doors, stale_s=5.0, now=100.0).standard == Activity(sequences=sequences, idle_s=idle_s)


@pytest.mark.parametrize(
    ("standard", "long", "expected"),
    [
        (Activity(sequences=0, idle_s=400), Activity(sequences=0, idle_s=20), Activity(sequences=0, idle_s=20)),
        (Activity(sequences=2, idle_s=0), Activity(sequences=1, idle_s=0), Activity(sequences=3, idle_s=0)),
        (Activity(sequences=0, idle_s=7), Activity(sequences=0, idle_s=math.inf), Activity(sequences=0, idle_s=7)),
        (Activity(sequences=0, idle_s=None), Activity(sequences=1, idle_s=None), Activity(sequences=1, idle_s=None)),
    ],
)
def test_what_both_classes_use_is_idle_when_both_are(standard, long, expected):
    assert Activities(standard=standard, long=long).any == expected


def test_long_sequences_count_as_long_alone():
    doors = [replace(door(3, 0), long_sequences=2, long_idle_s=0), replace(door(0, 9), long_idle_s=8)]
    found = activities_of(doors, stale_s=5.0, now=100.0)
    assert found.standard == Activity(sequences=3, idle_s=0)
    assert found.long == Activity(sequences=2, idle_s=0)


@pytest.mark.parametrize(
    ("wanted", "present", "activity", "expected"),
    [
        (1, 1, Activity(sequences=0, idle_s=300.0), 0),
        (1, 1, Activity(sequences=0, idle_s=299.0), 1),
        (1, 1, Activity(sequences=1, idle_s=0.0), 1),
        (1, 1, Activity(sequences=0, idle_s=None), 1),
        (1, 1, None, 1),
        (2, 3, Activity(sequences=0, idle_s=9e9), 2),  # one by one until the last
        (1, 2, Activity(sequences=0, idle_s=9e9), 0),
        (1, 0, Activity(sequences=0, idle_s=9e9), 0),
        (1, 0, Activity(sequences=0, idle_s=None), 0),
        (1, 0, Activity(sequences=0, idle_s=0.1), 0),  # it has gone again: nobody waits
        (1, 0, None, 0),
        (1, 0, Activity(sequences=1, idle_s=0.0), 1),
        (1, 0, Activity(sequences=1, idle_s=None), 1),
    ],
)
def test_the_last_replica_goes_when_nobody_asks_and_comes_back_when_somebody_does(wanted, present, activity, expected):
    assert last_replica(wanted, present, activity, ZERO_AFTER_S) == expected
