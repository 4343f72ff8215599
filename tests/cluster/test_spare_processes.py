"""Idle processes: when one is asked for, and what it has imported."""

from __future__ import annotations

import subprocess
import sys

from cluster.spare_processes import SpareNeed

COMPLETE = """
import importlib, sys
from cluster.warm_process import MODULES
for name in MODULES:
    importlib.import_module(name)
before = set(sys.modules)
import cluster.experts_deployment, cluster.router_deployment
print(sorted(set(sys.modules) - before))
"""


def test_a_spare_is_asked_for_once_it_was_missing_three_times_in_a_row():
    need = SpareNeed(1)
    assert [need.look(spares, 0) for spares in (1, 0, 0, 1, 0, 0, 0, 1)] == [0, 0, 0, 0, 0, 0, 1, 0]


def test_nothing_is_asked_for_while_a_process_is_on_its_way():
    need = SpareNeed(1)
    assert [need.look(0, new) for new in (0, 0, 1, 1, 1, 0, 0, 0)] == [0, 0, 0, 0, 0, 0, 0, 1]


def test_what_is_asked_for_makes_up_the_number():
    need = SpareNeed(3)
    assert [need.look(1, 0) for _ in range(3)] == [0, 0, 2]
    assert need.look(4, 0) == 0


def test_a_spare_has_imported_all_that_a_replica_needs():
    ran = subprocess.run([sys.executable, "-c", COMPLETE], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout.strip() == "['cluster.experts_deployment']"
