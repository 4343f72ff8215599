"""A benchmark's Herd ends with the benchmark."""

from __future__ import annotations

import signal
import subprocess
import sys

from benchmarks.chaos.processes import wait_gone
from cluster.launch.processes import descendants
from tests.experts.replica_client import wait_until

SCRIPT = """
from benchmarks.chaos.application import Application

with Application():
    raise SystemExit("it was to be terminated before it served")
"""
WAIT_S = 60


def test_it_does_when_that_is_terminated():
    with subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=subprocess.PIPE, text=True) as benchmark:
        wait_until(lambda: len(descendants(benchmark.pid)) > 1)  # `herd serve` and something of Ray's
        pids = descendants(benchmark.pid)
        benchmark.send_signal(signal.SIGTERM)
        _, told = benchmark.communicate(timeout=WAIT_S)
    assert "KeyboardInterrupt" in told
    assert wait_gone(pids, timeout_s=10)
