from __future__ import annotations

from dataclasses import replace

import pytest

from cluster.replica_roster import ReplicaInfo, ServeReplica, read_details, replica_roster
from cluster.startup_board import BoardEntry, ReplicaProgress
from protos.errors import BadCheckpoint

EXPERTS = ServeReplica(
    replica_id="a", deployment="Experts-0", state="RUNNING", started_at_s=900.0, host="10.0.0.1", pid=7
)
LOADING = ReplicaProgress(replica_id="a", deployment="Experts-0", phase="loading", done_bytes=1, total_bytes=4)
FAILED = replace(LOADING, phase="failed", error=BadCheckpoint("expected a file, found none"))
NOW_S = 1000.0


def one(serve: ServeReplica, progress: ReplicaProgress | None = None, age_s: float = 0.0, heard=("a",)) -> ReplicaInfo:
    board = [BoardEntry(progress=progress, age_s=age_s)] if progress else []
    [found] = replica_roster([serve], board, heard, NOW_S)
    return found


@pytest.mark.parametrize(
    ("serve_state", "state"),
    [
        ("STARTING", "starting"),
        ("RUNNING", "ready"),
        ("UPDATING", "ready"),
        ("RECOVERING", "ready"),
        ("PENDING_MIGRATION", "ready"),
        ("STOPPING", "draining"),
    ],
)
def test_a_replica_has_the_state_that_ray_serve_gives_it(serve_state, state):
    assert one(replace(EXPERTS, state=serve_state)).state == state


def test_a_starting_replica_tells_the_bytes_it_has_read():
    found = one(replace(EXPERTS, state="STARTING"), LOADING)
    assert (found.state, found.done_bytes, found.total_bytes, found.waits_for) == ("starting", 1, 4, "")
    assert (found.since_s, found.host, found.pid) == (900.0, "10.0.0.1", 7)


def test_a_starting_replica_tells_what_it_waits_for():
    waiting = replace(LOADING, phase="waiting", waits_for="experts [3]")
    assert one(replace(EXPERTS, state="STARTING"), waiting).waits_for == "experts [3]"


def test_a_ready_replica_tells_nothing_of_its_start():
    assert one(EXPERTS, replace(LOADING, phase="ready", done_bytes=4)).total_bytes == 0


def test_a_failed_start_is_told_with_its_reason_while_ray_serve_still_has_the_replica():
    for state in ("STARTING", "STOPPING"):
        found = one(replace(EXPERTS, state=state), FAILED, age_s=3.0)
        assert (found.state, found.reason, found.since_s) == ("failed", "expected a file, found none", 997.0)


def test_a_failed_start_is_told_when_ray_serve_has_forgotten_the_replica():
    [found] = replica_roster([], [BoardEntry(progress=FAILED, age_s=3.0)], None, NOW_S)
    assert (found.state, found.deployment) == ("failed", "Experts-0")


def test_a_process_that_died_while_it_loaded_is_not_told_as_loading():
    assert replica_roster([], [BoardEntry(progress=LOADING, age_s=0.0)], None, NOW_S) == ()


def test_an_expert_replica_that_runs_unheard_is_silent():
    assert one(EXPERTS, heard=()).state == "silent"


def test_no_other_replica_is_silent():
    assert one(replace(EXPERTS, deployment="Router"), heard=()).state == "ready"


def test_nobody_is_silent_for_a_directory_that_has_not_settled():
    assert one(EXPERTS, heard=None).state == "ready"


def test_a_replica_that_has_just_begun_to_serve_may_take_a_moment_to_register():
    ready = replace(LOADING, phase="ready")
    assert one(EXPERTS, ready, age_s=1.0, heard=()).state == "ready"
    assert one(EXPERTS, ready, age_s=10.0, heard=()).state == "silent"


def test_what_needs_a_look_comes_first():
    serve = [replace(EXPERTS, replica_id="b"), replace(EXPERTS, replica_id="c", state="STARTING"), EXPERTS]
    board = [BoardEntry(progress=replace(FAILED, replica_id="x"), age_s=1.0)]
    found = replica_roster(serve, board, ("a", "b"), NOW_S)
    assert [(each.state, each.replica_id) for each in found] == [
        ("failed", "x"),
        ("starting", "c"),
        ("ready", "a"),
        ("ready", "b"),
    ]


def test_details_of_other_applications_are_left_out():
    replica = {"replica_id": "a", "state": "STARTING", "start_time_s": 5.0, "node_ip": None}
    details = {
        "applications": {"herd": {"deployments": {"Router": {"replicas": [replica]}}}, "x": {"deployments": {"Y": {}}}}
    }
    [found] = read_details(details, "herd")
    assert found == ServeReplica(replica_id="a", deployment="Router", state="STARTING", started_at_s=5.0)
    assert read_details(details, "nothing") == ()
