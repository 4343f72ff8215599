"""A replica that replaces a dead one starts in a process kept ready, copies its weights, and computes the same."""

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
from tests.e2e.reflected_client import ReflectedClient, to_dict
from tests.e2e.served import served

pytestmark = pytest.mark.timeout(600)

SERVICE = "herd.inference.v1.InferenceService"
SETTINGS = (
    "experts.copy_from_peers=always",
    "experts.groups=1",
    "experts.replicas_per_group=2",
    "experts.warm_spares=1",
)


@pytest.fixture(scope="module")
def herd() -> Iterator[Application]:
    with served(*SETTINGS) as process:
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


def expert_pids(herd: Application) -> list[int]:
    return [each.pid for each in processes_of(herd.pid, Part.EXPERT)]


def wait_until(condition: Callable[[], object], what: str) -> None:
    give_up_at = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < give_up_at, what
        time.sleep(0.1)


def starts(client: ReflectedClient) -> dict[str, str]:
    """Return what replicas said about their start, by their name."""
    events = client.call(f"{SERVICE}/GetServerInfo")["events"]
    return {each["subject"]: each["text"] for each in events if each["text"].startswith("started: ")}


def tokens(client: ReflectedClient) -> list[int]:
    stopping = {"max_tokens": 24, "ignore_eos": True}
    events = client.stream(f"{SERVICE}/Generate", prompt="import os", stopping=stopping, sampling={"temperature": 0})
    return [token for event in events for token in to_dict(event).get("delta", {}).get("token_ids", [])]


def test_the_next_replica_starts_in_a_spare_copies_from_the_one_that_lives_and_says_the_same(herd):
    with ReflectedClient(herd.grpc_address) as client:
        expected = tokens(client)
        for victim in expert_pids(herd):  # both of the first ones go, so that copies compute alone in the end
            wait_until(lambda: len(spare_pids(herd)) == 1, "expected one spare")
            time.sleep(1)  # so long it has to be idle before anybody calls it warm
            spares, before = spare_pids(herd), starts(client)
            os.kill(victim, signal.SIGKILL)
            give_up_at = time.monotonic() + 120
            while not (new := starts(client).keys() - before.keys()):
                assert time.monotonic() < give_up_at, "expected the next replica to report its start"
                assert tokens(client) == expected
            assert spares < set(expert_pids(herd))
            for name in new:
                assert "warm process" in starts(client)[name]
                assert "copied from live replicas" in starts(client)[name]
        assert tokens(client) == expected
