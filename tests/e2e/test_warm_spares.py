"""A replica that replaces a dead one starts in a process that was kept ready, and another one is made ready."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from benchmarks.chaos.application import Application
from benchmarks.chaos.processes import Part, processes_of
from cluster.launch.processes import descendants
from cluster.warm_process import SPARE
from tests.e2e.reflected_client import ReflectedClient
from tests.e2e.served import served

pytestmark = pytest.mark.timeout(600)

INFO = "herd.inference.v1.InferenceService/GetServerInfo"
GENERATE = "herd.inference.v1.InferenceService/Generate"


@pytest.fixture(scope="module")
def herd() -> Iterator[Application]:
    with served("experts.warm_spares=1", "experts.groups=1") as process:
        yield process


def spare_pids(herd: Application) -> set[int]:
    found = set()
    for pid in descendants(herd.pid):
        try:
            with open(f"/proc/{pid}/cmdline") as title:
                if title.read().startswith(f"{SPARE})"):
                    found.add(pid)
        except OSError:
            continue
    return found


def wait_until(condition: Callable[[], object], what: str) -> None:
    give_up_at = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < give_up_at, what
        time.sleep(0.1)


def starts(client: ReflectedClient) -> list[str]:
    return [event["text"] for event in client.call(INFO)["events"] if event["text"].startswith("started: ")]


def replace_expert(herd: Application, client: ReflectedClient) -> tuple[int, str]:
    """Kill the expert replica; return the pid of the next one and what it says about its start."""
    generate(client)  # starts are told with the first dispatch
    wait_until(lambda: starts(client), "expected the first replica to report its start")
    before = starts(client)
    victim = processes_of(herd.pid, Part.EXPERT)[0].pid
    os.kill(victim, signal.SIGKILL)
    generate(client)
    wait_until(lambda: len(starts(client)) > len(before), "expected the next replica to report its start")
    pid = next(each.pid for each in processes_of(herd.pid, Part.EXPERT) if each.pid != victim)
    return pid, starts(client)[-1]


def generate(client: ReflectedClient) -> None:
    assert list(client.stream(GENERATE, prompt="import os", stopping={"max_tokens": 4}))


def test_replicas_start_in_spares_and_spares_are_replaced(herd):
    with ReflectedClient(herd.grpc_address) as client:
        for _ in range(2):
            wait_until(lambda: len(spare_pids(herd)) == 1, "expected one spare")
            time.sleep(1)  # so long it has to be idle before anybody calls it warm
            before = spare_pids(herd)
            pid, start = replace_expert(herd, client)
            assert before == {pid}
            assert "warm process" in start
