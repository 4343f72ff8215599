"""Memory by process: what is growth and what is noise."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest

from benchmarks.process_memory import MemoryWatch

MB = 1_000_000


def watch_of(sizes_mb: list[float]) -> MemoryWatch:
    """Return a watch that has read these sizes of a router, one every 1,000 requests."""
    watch = MemoryWatch(os.getpid())
    watch._points = [{"Router (1)": int(each * MB), "Ray's other processes": 0} for each in sizes_mb]
    watch._num_requests = [index * 1000 for index in range(len(sizes_mb))]
    return watch


def test_a_leak_is_found_in_noise_and_noise_is_no_leak():
    dice = random.Random(1)
    noise = [dice.uniform(-1, 1) for _ in range(25)]
    assert watch_of([300 + each for each in noise]).growing(0.5) == {}
    [(name, growth)] = watch_of([300 + 2 * index + each for index, each in enumerate(noise)]).growing(0.5).items()
    assert name == "Router (1)"
    assert growth == pytest.approx(2, abs=0.3)


def test_one_jump_is_no_leak_and_hides_none():
    jump = [0] * 17 + [5] * 8
    assert watch_of([300 + each for each in jump]).growing(0.5) == {}
    [growth] = watch_of([300 + index + each for index, each in enumerate(jump)]).growing(0.5).values()
    assert growth == pytest.approx(1)


def test_growth_by_jumps_is_a_leak():
    assert watch_of([300 + 4 * (index // 3) for index in range(25)]).growing(0.5)


def test_growth_that_has_ended_in_the_first_half_is_none():
    assert watch_of([300, 340, 350, 352, *[352] * 6]).growing(0.5) == {}


def test_too_few_points_say_nothing():
    assert watch_of([300, 400]).growing(0.5) == {}


def test_memory_of_processes_below_one_is_read():
    took = 50 * MB
    code = f"data = bytearray({took}); data[::4096] = b'x' * len(data[::4096]); print(flush=True); input()"
    watch = MemoryWatch(os.getpid())
    before = watch.read(0)
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert watch.read(1) - before >= took
        child.communicate(b"\n")
