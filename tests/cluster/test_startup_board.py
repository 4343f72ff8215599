from __future__ import annotations

from dataclasses import replace

from cluster.startup_board import ReplicaProgress, StartupBoard
from protos.errors import BadCheckpoint

LOADING = ReplicaProgress(replica_id="a", deployment="Experts-0", phase="loading", done_bytes=1, total_bytes=4)


def names(board: StartupBoard, now: float) -> list[str]:
    return [each.replica_id for each in board.progress(now)]


def failed(name: str) -> ReplicaProgress:
    return replace(LOADING, replica_id=name, phase="failed", error=BadCheckpoint("no such file"))


def test_the_board_keeps_the_last_word_of_each_replica():
    board = StartupBoard()
    board.report(LOADING, now=0)
    board.report(replace(LOADING, done_bytes=2), now=1)
    [entry] = board.entries(now=3)
    assert (entry.progress.done_bytes, entry.age_s) == (2, 2)


def test_a_replica_that_says_nothing_more_while_it_loads_is_forgotten():
    board = StartupBoard()
    board.report(LOADING, now=0)
    board.report(replace(LOADING, replica_id="b", phase="waiting"), now=100)
    assert names(board, now=100) == ["a", "b"]
    assert names(board, now=130) == ["b"]
    assert names(board, now=230) == []


def test_what_a_ready_replica_said_stays():
    board = StartupBoard()
    board.report(replace(LOADING, phase="ready"), now=0)
    assert names(board, now=1e6) == ["a"]


def test_a_failure_is_told_for_minutes_and_only_the_newest_are():
    board = StartupBoard()
    for index in range(20):
        board.report(failed(str(index)), now=index)
    assert names(board, now=20) == [str(index) for index in range(4, 20)]
    assert names(board, now=1000) == []


def test_the_board_is_bounded():
    board = StartupBoard()
    for index in range(5000):
        board.report(replace(LOADING, replica_id=str(index), phase="ready"), now=0)
    board.report(replace(LOADING, replica_id="4000"), now=0)
    assert len(names(board, now=0)) == 4096
    assert names(board, now=0)[-1] == "4000"
