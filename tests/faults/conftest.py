"""A running Herd for each module: `--dist loadfile` lets one worker run all its tests, and it ends after the last."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.chaos.application import Application
from benchmarks.chaos.load import Load
from benchmarks.chaos.record import StreamRecord
from benchmarks.chaos.redundancy import Redundancy, RedundancyWatch
from benchmarks.chaos.requests import make_requests
from benchmarks.chaos.scratch import Scratch
from tests.e2e.served import served
from tests.faults.trial import Trial

STREAMS = 16
REQUESTS = make_requests(20, max_tokens=48)
SETTINGS = (
    "experts.warm_spares=0",
    "experts.replicas_per_group=2",
    "experts.lease_s=3",  # how long a replica that hangs is waited for at most
    "model.context_length=256",
)
SETTLE_S = 60


@pytest.fixture(scope="module")
def herd() -> Iterator[Application]:
    """`herd serve` with the demo model and two routers."""
    with served("router.replicas=2", "experts.lease_s=60", "limits.drain_s=60") as application:
        yield application


@pytest.fixture(scope="module")
def application() -> Iterator[Application]:
    """`herd serve` with two holders of every expert; it has to leave nothing behind, whatever was done to it."""
    with Scratch() as scratch, Application(SETTINGS, folder=scratch.folder) as running:
        yield running
        assert running.end() == 0, running.output
        assert running.leftovers() == []
        assert scratch.leftovers() == []


@pytest.fixture(scope="module")
def whole(application) -> Redundancy:
    """What is there as long as nothing is missing."""
    return RedundancyWatch(application.pid, application.grpc_port).steady(SETTLE_S)


@pytest.fixture(scope="module")
def reference(application, whole) -> list[StreamRecord]:
    """Every request's stream without faults."""
    return Load(application.grpc_port, REQUESTS, STREAMS).run_each_once()


@pytest.fixture
def trial(application, whole, reference) -> Iterator[Trial]:
    """A steady load of streams, running and being answered."""
    with Trial(application, Load(application.grpc_port, REQUESTS, STREAMS), whole, reference) as trial:
        yield trial
