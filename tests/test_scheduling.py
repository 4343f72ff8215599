"""Tests whose process is killed cost their own result, and nobody else's."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CONFTEST = """
def pytest_xdist_make_scheduler(config, log):
    from tests.scheduling import OneApplicationAtATime
    return OneApplicationAtATime(config, log)
"""
PASSING = """
import pytest

@pytest.mark.parametrize("number", range({num}))
def test_passes(number):
    pass
"""
CRASHING = """
import os, signal

def test_before(): pass
def test_killed(): os.kill(os.getpid(), signal.SIGKILL)
"""
AFTER = "def test_after{number}(): pass\n"


@pytest.mark.parametrize(("num_after", "num_other_files"), [(0, 0), (1, 4), (2, 1)])
def test_all_others_run_when_a_process_is_killed(tmp_path, num_after, num_other_files):
    (tmp_path / "conftest.py").write_text(CONFTEST)
    after = "".join(AFTER.format(number=number) for number in range(num_after))
    (tmp_path / "test_b.py").write_text(CRASHING + after)
    for number in range(num_other_files):
        (tmp_path / f"test_{'ac'[number % 2]}{number}.py").write_text(PASSING.format(num=1 + number))
    command = [sys.executable, "-m", "pytest", "-n", "2", "-q", "--rootdir", "."]
    environment = {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    num_passed = 1 + num_after + sum(1 + number for number in range(num_other_files))
    assert re.search(rf"1 failed, {num_passed} passed", run.stdout), run.stdout
    assert "test_killed" in run.stdout
