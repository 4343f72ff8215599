"""One running Herd with two of all that may die, for all files here: one worker runs them (`tests/scheduling.py`)."""

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
    "experts.replicas_per_group=2",
    "experts.lease_s=10",  # how long a replica that hangs is waited for at most
    "router.replicas=2",
    "limits.drain_s=60",
    "model.context_length=256",
)
SETTLE_S = 60


@pytest.fixture(scope="package")
def herd() -> Iterator[Application]:
    """`herd serve` with the demo model; it has to leave nothing behind, whatever was done to it."""
    with Scratch() as scratch:
        with served(*SETTINGS, folder=scratch.folder) as running:
            yield running
        assert scratch.leftovers() == []


@pytest.fixture(scope="package")
def whole(herd) -> Redundancy:
    """What is there as long as nothing is missing."""
    return RedundancyWatch(herd.pid, herd.grpc_port).steady(SETTLE_S)


@pytest.fixture(scope="package")
def reference(herd, whole) -> list[StreamRecord]:
    """Every request's stream without faults."""
    return Load(herd.grpc_port, REQUESTS, STREAMS).run_each_once()


@pytest.fixture
def trial(herd, whole, reference) -> Iterator[Trial]:
    """A steady load of streams, running and being answered."""
    with Trial(herd, Load(herd.grpc_port, REQUESTS, STREAMS), whole, reference) as trial:
        yield trial
