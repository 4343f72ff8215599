"""The chart's worker groups under Ray's own KubeRay autoscaler: pods come with requests, and go when there are none."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from benchmarks.chaos.comparison import compare
from benchmarks.chaos.load import Load
from benchmarks.chaos.requests import make_requests
from tests.kube.local_release import LocalRelease, local_release

pytestmark = pytest.mark.timeout(1200)

WAIT_S = 400.0
REQUESTS = make_requests(4, max_tokens=12)
VALUES = {
    "settings": {
        "experts": {"groups": 1},
        "scaling": {"router_min_replicas": 0, "experts_min_replicas": 0, "zero_after_s": 1},
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


def test_workers_go_from_none_to_two_under_load_and_back_and_no_request_fails_or_is_answered_otherwise(release):
    undisturbed = Load(release.grpc_port, REQUESTS, 2, WAIT_S).run_each_once()
    doors = release.pods("front-door")
    release.set_idle_timeout(1)
    release.wait_for(lambda: not release.pods(*SCALED), WAIT_S, "no pod of a router or of experts without requests")

    load = Load(release.grpc_port, REQUESTS, 2, WAIT_S)
    began = time.monotonic()
    load.start()
    asked_s = release.wait_for(lambda: len(release.pods(*SCALED)) == 2, WAIT_S, "a pod of each with the first request")
    release.wait_for(lambda: any(each.is_complete for each in load.records), WAIT_S, "an answer")
    load.stop()
    gone_s = release.wait_for(lambda: not release.pods(*SCALED), WAIT_S, "no pod of them when requests have ended")

    first_s = min(each.arrivals[0][0] for each in load.records if each.arrivals) - began
    print(
        f"pods asked for after {asked_s:.1f} s, first token after {first_s:.1f} s, gone {gone_s:.1f} s after the last"
    )
    differences = compare(load.records, undisturbed)
    assert differences.is_clean, differences.describe()
    assert release.pods("front-door") == doors
