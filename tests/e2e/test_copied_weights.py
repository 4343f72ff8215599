"""A replica that replaces a dead one copies its weights from one that lives, and computes the same."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import pytest

from benchmarks.chaos.application import Application
from benchmarks.chaos.processes import Part, processes_of
from tests.e2e.reflected_client import ReflectedClient, to_dict
from tests.e2e.served import served

pytestmark = pytest.mark.timeout(600)

SERVICE = "herd.inference.v1.InferenceService"
SETTINGS = (
    "experts.copy_from_peers=always",
    "experts.groups=1",
    "experts.replicas_per_group=2",
    "experts.warm_spares=0",
)


@pytest.fixture(scope="module")
def herd() -> Iterator[Application]:
    with served(*SETTINGS) as process:
        yield process


def tokens(client: ReflectedClient) -> list[int]:
    stopping = {"max_tokens": 24, "ignore_eos": True}
    events = client.stream(f"{SERVICE}/Generate", prompt="import os", stopping=stopping, sampling={"temperature": 0})
    return [token for event in events for token in to_dict(event).get("delta", {}).get("token_ids", [])]


def starts(client: ReflectedClient) -> dict[str, str]:
    events = client.call(f"{SERVICE}/GetServerInfo")["events"]
    return {each["subject"]: each["text"] for each in events if each["text"].startswith("started: ")}


def test_the_next_replica_copies_from_the_one_that_lives_and_says_the_same(herd):
    with ReflectedClient(herd.grpc_address) as client:
        expected = tokens(client)
        for _ in range(2):  # both of the first ones go, so that copies compute alone in the end
            before = starts(client)
            victim = processes_of(herd.pid, Part.EXPERT)[0]
            os.kill(victim.pid, signal.SIGKILL)
            give_up_at = time.monotonic() + 120
            while not (new := starts(client).keys() - before.keys()):
                assert time.monotonic() < give_up_at, "expected the next replica to report its start"
                assert tokens(client) == expected
            for name in new:
                assert "copied from live replicas" in starts(client)[name]
                assert "warm process" not in starts(client)[name], "spares are switched off"
            time.sleep(1)
        assert tokens(client) == expected
