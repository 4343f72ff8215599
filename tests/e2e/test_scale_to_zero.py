"""Routers and experts that go with their pods when nobody asks for anything, and come back with the next request.

The chart's worker groups under Ray's own KubeRay autoscaler, with pods that are processes of this machine.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator

import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from benchmarks.chaos.comparison import compare
from benchmarks.chaos.load import Load
from benchmarks.chaos.record import StreamRecord
from benchmarks.chaos.requests import make_requests
from tests.cluster.test_cli import herd as herd_command
from tests.e2e.reflected_client import ReflectedClient
from tests.e2e.test_autoscaling import SERVICE, tokens_of
from tests.kube.local_release import LocalRelease, local_release

pytestmark = pytest.mark.timeout(1200)

WAIT_S = 400.0
"""Seconds that an answer may take, starts included: they take ten, and more where others start things too."""
REQUESTS = make_requests(4, max_tokens=12)
PROMPT, NUM_TOKENS, ZERO_AFTER_S = "def main():", 24, 1
VALUES = {
    "settings": {
        "experts": {"groups": 1},
        "scaling": {"router_min_replicas": 0, "experts_min_replicas": 0, "zero_after_s": ZERO_AFTER_S},
    },
    # Long, until everything has started: a pod whose role was looked at waits for its replica.
    "autoscaling": {"enabled": True, "idleTimeoutSeconds": 60},
    "workers": {role: {"cpu": "1"} for role in ("frontDoors", "routers", "experts")},
}
SCALED = ("router", "experts")


@pytest.fixture(scope="module")
def release(needs_helm: None) -> Iterator[LocalRelease]:
    """The demo with routers and experts that may go to zero."""
    with local_release(VALUES) as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(release) -> list[StreamRecord]:
    """What is generated before anything goes; then pods may go at once."""
    found = Load(release.grpc_port, REQUESTS, 2, WAIT_S).run_each_once()
    release.set_idle_timeout(1)
    return found


@pytest.fixture(scope="module")
def client(release) -> Iterator[ReflectedClient]:
    """A client of its gRPC API."""
    with ReflectedClient(f"localhost:{release.grpc_port}") as found:
        yield found


@pytest.fixture(scope="module")
def expected(undisturbed, client) -> list[int]:
    """The tokens of one more request."""
    return tokens_of(client, PROMPT, NUM_TOKENS, WAIT_S)


def wait_for_zero(release: LocalRelease) -> float:
    return release.wait_for(lambda: not release.pods(*SCALED), WAIT_S, "no pod of a router or of experts")


def complete_over_http(release: LocalRelease) -> list[int]:
    body = {"prompt": PROMPT, "max_tokens": NUM_TOKENS, "ignore_eos": True, "temperature": 0, "return_token_ids": True}
    headers = {"content-type": "application/json"}
    asked = urllib.request.Request(f"{release.base_url}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(asked, timeout=WAIT_S) as answer:
        return json.load(answer)["choices"][0]["token_ids"]


def test_with_nothing_loaded_it_says_that_it_serves(release, client, expected):
    wait_for_zero(release)
    with urllib.request.urlopen(f"{release.base_url}/health", timeout=10) as answer:
        assert (answer.status, json.load(answer)) == (200, {"status": "ok", "routers": 0})
    serving = health_pb2.HealthCheckResponse.SERVING
    assert HealthStub(client.channel).Check(health_pb2.HealthCheckRequest(), timeout=10).status == serving
    status = herd_command("status", "--address", f"localhost:{release.grpc_port}")
    assert status.returncode == 0, status.stderr
    assert "no router runs; the first request starts one" in status.stdout
    info = client.call(f"{SERVICE}/GetServerInfo")
    assert info["expert_replicas"] == []
    assert info["model"]["context_length"] > 0
    time.sleep(1)
    assert not release.pods(*SCALED), "to be asked how it is must start nothing"


def test_workers_go_from_none_to_two_under_load_and_back_and_no_request_fails_or_is_answered_otherwise(
    release, undisturbed
):
    doors = release.pods("front-door")
    wait_for_zero(release)

    load = Load(release.grpc_port, REQUESTS, 2, WAIT_S)
    began = time.monotonic()
    load.start()
    asked_s = release.wait_for(lambda: len(release.pods(*SCALED)) == 2, WAIT_S, "a pod of each with the first request")
    release.wait_for(lambda: any(each.is_complete for each in load.records), WAIT_S, "an answer")
    load.stop()
    gone_s = wait_for_zero(release)

    first_s = min(each.arrivals[0][0] for each in load.records if each.arrivals) - began
    print(
        f"pods asked for after {asked_s:.1f} s, first token after {first_s:.1f} s, gone {gone_s:.1f} s after the last"
    )
    differences = compare(load.records, undisturbed)
    assert differences.is_clean, differences.describe()
    assert release.pods("front-door") == doors


def test_a_request_over_http_starts_all_and_one_that_meets_the_last_replica_going_is_answered_too(
    release, client, expected
):
    wait_for_zero(release)
    assert complete_over_http(release) == expected
    time.sleep(ZERO_AFTER_S + 0.3)
    began = time.monotonic()
    assert tokens_of(client, PROMPT, NUM_TOKENS, WAIT_S) == expected
    print(f"answered in {time.monotonic() - began:.1f} s")
