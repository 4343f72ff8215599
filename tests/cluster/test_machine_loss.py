from __future__ import annotations

from dataclasses import dataclass

from cluster.machine_loss import lost_with, machines_by_expert


@dataclass
class Replica:
    host: str
    expert_ids: tuple[int, ...]


def test_experts_with_all_their_copies_on_one_machine_are_lost_with_it():
    replicas = [Replica("m", (0, 1)), Replica("m", (0, 1)), Replica("n", (1, 2)), Replica("n", (2, 3))]
    assert lost_with(replicas) == {"m": [0], "n": [2]}
    assert machines_by_expert(replicas)[1] == ["m", "m", "n"]


def test_one_copy_was_not_meant_to_outlive_its_machine():
    assert lost_with([Replica("m", (0,)), Replica("n", (1,))]) == {}


def test_where_there_is_one_machine_there_was_no_choice():
    assert lost_with([Replica("m", (0,)), Replica("m", (0,))]) == {}
