"""What the chaos benchmark concludes from streams and processes: without an application."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.chaos.comparison import compare, count_differences
from benchmarks.chaos.connections import served_hosts
from benchmarks.chaos.engine_load import EngineLoad
from benchmarks.chaos.faults import FullDisk, Kill, Slow, Stop
from benchmarks.chaos.outcome import FaultEvent, Outcome
from benchmarks.chaos.plot import draw_throughput
from benchmarks.chaos.processes import is_alive
from benchmarks.chaos.record import StreamRecord
from benchmarks.chaos.redundancy import Redundancy
from benchmarks.chaos.report import as_table, details, record_of, write_results
from benchmarks.chaos.requests import make_requests
from benchmarks.chaos.scenarios import SCENARIOS
from benchmarks.chaos.throughput import longest_gap, mean_rate, measure_throughput
from tests.router.local_engine import local_engine

WAIT_S = 20


def record(token_ids, *, number=0, error=None, **fields) -> StreamRecord:
    """A stream that began at second 0, a token a second from second 1 on."""
    arrivals = [(1.0 + place, 1) for place in range(len(token_ids))]
    made = StreamRecord(number=number, worker=0, began_s=0.0, ended_s=9.0, token_ids=list(token_ids), error=error)
    made.arrivals = arrivals
    made.finish_reason, made.prompt_tokens, made.completion_tokens = 2, 3, len(token_ids)
    for name, value in fields.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("found", "counts"),
    [
        ([1, 2, 3, 4], (0, 0, 0)),
        ([1, 2], (2, 0, 0)),
        ([1, 2, 4], (1, 0, 0)),
        ([1, 2, 2, 3, 4], (0, 1, 0)),
        ([1, 2, 9, 4], (0, 0, 1)),
        ([1, 2, 9, 8], (0, 0, 2)),
        ([], (4, 0, 0)),
    ],
)
def test_lost_doubled_and_changed_tokens_are_told_apart(found, counts):
    assert count_differences(found, [1, 2, 3, 4]) == counts


def test_a_failed_stream_counts_once_and_its_missing_tokens_as_lost():
    found = compare([record([1, 2], error="UNAVAILABLE: gone")], [record([1, 2, 3])])
    assert (found.streams, found.failed, found.lost, found.changed) == (1, 1, 1, 0)
    assert found.errors == {"UNAVAILABLE: gone": 1}
    assert found.only_ended_early
    assert not found.is_clean


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"logprobs": [-1.0, -2.1, -3.0]}, "changed_logprobs"),
        ({"logprobs": []}, "changed_logprobs"),
        ({"finish_reason": 1}, "wrong_ends"),
        ({"completion_tokens": 2}, "wrong_ends"),
    ],
)
def test_right_tokens_with_wrong_logprobs_or_ends_are_found(fields, name):
    expected = record([1, 2, 3], logprobs=[-1.0, -2.0, -3.0])
    found = compare([record([1, 2, 3], **{"logprobs": [-1.0, -2.0, -3.0]} | fields)], [expected])
    assert getattr(found, name) > 0
    assert not found.is_clean


def test_a_stream_without_an_end_has_failed():
    assert compare([record([1], ended_s=None)], [record([1])]).failed == 1


def test_rates_and_gaps_are_those_of_the_messages():
    late = record([1, 2, 3], arrivals=[(1.0, 1), (1.5, 1), (4.0, 2)])
    assert longest_gap([late]) == 2.5
    assert mean_rate([late], [(1.0, 2.0), (4.0, 5.0)]) == 2.0
    assert mean_rate([late], []) is None
    assert sum(measure_throughput([late], 0.0, 5.0).tokens_per_s) == 4 * 4


def test_redundancy_wants_every_process_registration_and_connection_back():
    whole = Redundancy(processes=(("Experts-0", 2), ("Router", 1)), experts=(("Experts-0", 2, 2),), routers=1)
    assert whole.has_all_of(whole)
    for less in (
        {"processes": (("Experts-0", 1), ("Router", 1))},
        {"processes": (("Experts-0", 2),)},
        {"experts": (("Experts-0", 1, 2),)},
        {"experts": (("Experts-0", 2, 1),)},
        {"experts": ()},
        {"routers": 0},
    ):
        assert not replace(whole, **less).has_all_of(whole)


def test_requests_are_the_same_each_time_and_of_every_kind():
    requests = make_requests(16, max_tokens=32)
    assert requests == make_requests(16, max_tokens=32)
    assert {request.seed is None for request in requests} == {True, False}
    assert {(request.seed is None, request.logprobs) for request in requests if request.logprobs} == {
        (True, 1),
        (False, 1),
    }
    assert all(16 <= request.max_tokens <= 32 for request in requests)


def test_a_load_asks_each_request_once_and_then_on_and_on():
    requests = [replace(each, prompt_ids=(1, 2, each.number)) for each in make_requests(6, max_tokens=8)]
    with local_engine() as local:
        load = EngineLoad(local.engine, requests, workers=3)
        reference = load.run_each_once()
        assert [len(each.token_ids) for each in reference] == [each.max_tokens for each in requests]
        load.start()
        wait_until(lambda: len(load.records) > 2 * len(requests))
        load.stop()
    assert compare(load.records, reference).is_clean
    assert all(each.ended_s is not None for each in load.records)


def test_a_load_says_which_request_failed_alone():
    (request,) = make_requests(1, max_tokens=8)
    too_long = replace(request, prompt_ids=(1,) * 10_000)
    with (
        local_engine() as local,
        pytest.raises(RuntimeError, match="expected 1 streams to end without faults"),
    ):
        EngineLoad(local.engine, [too_long], workers=1).run_each_once()


@pytest.fixture
def counting(tmp_path):
    """A process that counts in a file as fast as it can."""
    path = tmp_path / "count"
    code = f"import itertools,os\nf=os.open({str(path)!r},os.O_RDWR|os.O_CREAT)\n"
    code += "for n in itertools.count(1): os.pwrite(f,b'%d'%n,0)"
    process = subprocess.Popen([sys.executable, "-c", code])
    wait_until(lambda: path.exists() and path.read_text())
    yield process, lambda: int(path.read_text() or 0)
    process.kill()
    process.wait()


def wait_until(holds) -> None:
    give_up_at = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < give_up_at
        time.sleep(0.005)


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_stopped_process_stands_still_until_it_is_let_go(counting):
    process, count = counting
    fault = Stop(process.pid)
    fault.inject()
    wait_until(lambda: state_of(process.pid) == "T")
    stood_at = count()
    fault.lift()
    wait_until(lambda: count() > stood_at)


def test_a_slow_process_goes_on_and_is_not_left_standing(counting):
    process, count = counting
    fault = Slow(process.pid, share=0.5, turn_s=0.02)
    fault.inject()
    started_at = count()
    wait_until(lambda: count() > started_at)
    fault.lift()
    wait_until(lambda: state_of(process.pid) != "T")


def test_a_killed_process_is_dead_when_inject_returns(counting):
    process, _ = counting
    Kill(process.pid).inject()
    assert not is_alive(process.pid)


def test_a_full_disk_is_full_and_has_room_again():
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    from benchmarks.chaos.scratch import Scratch

    with Scratch(size_mb=2) as scratch:
        fault = FullDisk(scratch.folder)
        fault.inject()
        with pytest.raises(OSError, match="No space"):
            (scratch.folder / "more").write_bytes(b"x")
        fault.lift()
        (scratch.folder / "more").write_bytes(b"x" * 1000)
        assert scratch.leftovers() == ["more"]
    assert not scratch.folder.exists()


def test_the_serving_end_of_a_connection_shows_the_address_that_was_called():
    with socket.create_server(("0.0.0.0", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.7", port)):
            accepted, _ = server.accept()
            with accepted:
                assert served_hosts(os.getpid(), port) == {"127.0.0.7"}


def test_results_of_other_scenarios_stay_and_a_broken_promise_shows(tmp_path):
    fine = Outcome(scenario="none", settings={"streams": "16"}, throughput=[3.0], bin_s=0.25)
    broken = Outcome(scenario="expert-kill", settings={"streams": "16"}, throughput=[1.0, 2.0], bin_s=0.25)
    broken.faults = [FaultEvent(label="SIGKILL Experts-0 (7)", injected_s=0.1, lifted_s=0.1, problem="one is missing")]
    for outcome in (fine, broken):
        draw_throughput(outcome, tmp_path / f"chaos-{outcome.scenario}.svg")
    write_results(tmp_path, "chaos", {"commit": "f00d"}, [fine])
    write_results(tmp_path, "chaos", {"commit": "f00d"}, [broken])
    page = (tmp_path / "chaos.md").read_text()
    assert "| none | 0 |" in page
    assert "never | **broken** |" in page
    assert "![tokens per second over time](chaos-expert-kill.svg)" in page
    assert details(record_of(broken)) == ["not back (1 x): one is missing"]
    assert "broken" not in as_table([record_of(fine)])


def test_scenarios_are_named_once_and_explained():
    assert {
        "expert-kill",
        "expert-kill-only-holder",
        "expert-stop",
        "expert-slow",
        "router-kill",
        "router-stop",
    } <= set(SCENARIOS)
    assert all(scenario.summary for scenario in SCENARIOS.values())
