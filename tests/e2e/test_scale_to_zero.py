"""Routers and experts that go when nobody asks for anything, and come back with the next request."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from benchmarks.chaos.application import Application
from cluster.launch.processes import descendants
from tests.cluster.test_cli import herd as herd_command
from tests.e2e.reflected_client import ReflectedClient
from tests.e2e.served import served
from tests.e2e.test_autoscaling import SERVICE, tokens_of, wait_until

pytestmark = pytest.mark.timeout(600)

PROMPT, NUM_TOKENS, ZERO_AFTER_S = "def main():", 24, 2.0
WAKE_S = 180
"""Seconds that an answer may take, starts included: they take ten, and more where others start things too."""
SETTINGS = (
    "scaling.router_min_replicas=0",
    "scaling.experts_min_replicas=0",
    f"scaling.zero_after_s={ZERO_AFTER_S}",
    "scaling.budget=3",
)


@pytest.fixture(scope="module")
def herd() -> Iterator[Application]:
    """`herd serve` that may go to zero."""
    with served(*SETTINGS) as process:
        yield process


@pytest.fixture(scope="module")
def client(herd) -> Iterator[ReflectedClient]:
    """A client of its gRPC API."""
    with ReflectedClient(herd.grpc_address) as found:
        yield found


@pytest.fixture(scope="module")
def expected(client) -> list[int]:
    """What is generated before anything went."""
    return tokens_of(client, PROMPT, NUM_TOKENS, WAKE_S)


def replica_processes(herd: Application) -> list[str]:
    """Name the processes of routers and experts."""
    titles = []
    for pid in descendants(herd.pid):
        try:
            titles.append(Path(f"/proc/{pid}/cmdline").read_text())
        except OSError:
            continue
    return [title for title in titles if ":Router" in title or ":Experts-" in title]


def wait_for_zero(herd: Application) -> float:
    return wait_until(lambda: not replica_processes(herd), 120, "expected no router and no expert replica any more")


def complete_over_http(herd: Application) -> list[int]:
    body = {"prompt": PROMPT, "max_tokens": NUM_TOKENS, "ignore_eos": True, "temperature": 0, "return_token_ids": True}
    headers = {"content-type": "application/json"}
    asked = urllib.request.Request(f"{herd.base_url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=WAKE_S) as answer:
        return json.load(answer)["choices"][0]["token_ids"]


def test_with_nothing_loaded_it_says_that_it_serves(herd, client, expected):
    wait_for_zero(herd)
    with urllib.request.urlopen(f"{herd.base_url}/health", timeout=10) as answer:
        assert (answer.status, json.load(answer)) == (200, {"status": "ok", "routers": 0})
    serving = health_pb2.HealthCheckResponse.SERVING
    assert HealthStub(client.channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status == serving
    status = herd_command("status", "--address", herd.grpc_address)
    assert status.returncode == 0, status.stderr
    assert "no router runs; the first request starts one" in status.stdout
    info = client.call(f"{SERVICE}/GetServerInfo")
    assert info["expert_replicas"] == []
    assert info["model"]["context_length"] > 0
    time.sleep(1)
    assert not replica_processes(herd), "to be asked how it is must start nothing"


def test_the_next_request_starts_all_and_is_answered_as_before(herd, expected):
    slept_s = wait_for_zero(herd)
    began = time.monotonic()
    found = complete_over_http(herd)
    print(f"gone after {slept_s:.1f} s, answered {time.monotonic() - began:.1f} s after it was asked")
    assert found == expected


def test_a_request_that_meets_the_last_replica_going_is_answered(client, expected):
    tokens_of(client, PROMPT, 1, WAKE_S)
    time.sleep(ZERO_AFTER_S + 0.3)
    began = time.monotonic()
    assert tokens_of(client, PROMPT, NUM_TOKENS, WAKE_S) == expected
    print(f"answered in {time.monotonic() - began:.1f} s")
