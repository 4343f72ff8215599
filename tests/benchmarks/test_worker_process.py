"""Workers as real processes: asked, paused, ended; and the pool that keeps them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.peers import worker
from benchmarks.peers.pool import WorkerPool
from benchmarks.peers.process import WorkerFailed, WorkerProcess

START_S = 30
ANSWER_S = 30
ROOT = Path(worker.__file__).resolve().parents[2]
SCRIPT = """
import subprocess, sys
sys.path.insert(0, {folder!r})
import worker

class Counting:
    settings = {{"kind": "counting"}}
    def __init__(self):
        self.child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    def generate(self, prompts, max_tokens, emit):
        print("noise on stdout")
        if prompts == [[13]]:
            raise SystemExit("unlucky")
        if prompts == [[99]]:
            import time
            time.sleep(600)
        for token in range(max_tokens):
            for number in range(len(prompts)):
                emit(number, token)
    def process_names(self):
        return {{self.child.pid: "helper"}}

worker.run(Counting, ["pip"])
"""


@pytest.fixture
def start(tmp_path):
    script = tmp_path / "counting.py"
    script.write_text(SCRIPT.format(folder=str(Path(worker.__file__).parent)))
    started = []

    def start_one(name: str = "counting") -> WorkerProcess:
        process = WorkerProcess(name, [sys.executable, str(script)], {}, tmp_path / f"{name}.log", START_S)
        started.append(process)
        return process

    yield start_one
    for process in started:
        process.end()


def family(process: WorkerProcess) -> list[int]:
    return [process._process.pid, *worker.descendants(process._process.pid)]


def test_a_worker_answers_with_tokens_arrivals_and_memory_whatever_the_engine_prints(start):
    answer = start().ask([[1], [2]], 3, ANSWER_S)
    assert answer["tokens"] == [[0, 1, 2], [0, 1, 2]]
    assert answer["ttft_s"] <= answer["seconds"] == answer["arrivals_s"][1][2]
    assert answer["peak_rss_bytes"]["helper"] > 0
    assert len(answer["peak_rss_bytes"]) == 2


def test_a_worker_that_ends_says_why(start):
    process = start()
    with pytest.raises(WorkerFailed, match="unlucky"):
        process.ask([[13]], 1, ANSWER_S)


def test_a_worker_that_does_not_answer_in_time_is_ended_with_its_children(start):
    process = start()
    pids = family(process)
    with pytest.raises(WorkerFailed, match="within 0 s"):
        process.ask([[99]], 1, 0.2)
    assert have_ended(pids)


def have_ended(pids: list[int]) -> bool:
    """Wait for them: a killed process that is not our child goes when the kernel gets to it."""
    deadline = time.monotonic() + ANSWER_S
    while any(is_running(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not any(is_running(pid) for pid in pids)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):  # it ended between the two questions
        return False
    return state != "Z"


def test_a_paused_worker_answers_when_it_is_asked_again(start):
    process = start()
    process.pause()
    assert process.ask([[1]], 1, ANSWER_S)["tokens"] == [[0]]


def test_a_paused_worker_and_its_children_end_with_a_parent_that_is_killed(tmp_path):
    script = tmp_path / "counting.py"
    script.write_text(SCRIPT.format(folder=str(Path(worker.__file__).parent)))
    driver = f"""
import os, signal, sys
from pathlib import Path
from benchmarks.peers.process import WorkerProcess
from benchmarks.peers.worker import descendants
process = WorkerProcess("counting", [sys.executable, {str(script)!r}], {{}}, Path({str(tmp_path / "log")!r}), {START_S})
process.pause()
print(process._process.pid, *descendants(process._process.pid))
sys.stdout.flush()
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", driver], capture_output=True, text=True, timeout=START_S, cwd=ROOT)
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    assert have_ended(pids)


def test_the_pool_ends_who_was_asked_longest_ago_when_memory_is_short(start):
    free, ended = [1 << 40], []

    def start_noting(name: str) -> WorkerProcess:
        process = start(name)
        end = process.end
        process.end = lambda: (ended.append(name), free.append(1 << 40), end())
        return process

    pool = WorkerPool(start_noting, lambda name: 1, lambda: free[-1], lambda name, share: None)
    pool.get("first")
    pool.get("second")
    pool.get("first")
    free.append(0)
    pool.get("third")
    assert ended == ["second"]
    pool.end_all()
    assert ended == ["second", "first", "third"]
