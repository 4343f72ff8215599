"""One running Herd with the demo model for all files here: one worker runs them (`tests/scheduling.py`)."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.chaos.application import Application
from tests.e2e.served import served
from tests.e2e.span_collector import SpanCollector


@pytest.fixture(scope="package")
def collector() -> Iterator[SpanCollector]:
    """Where the spans of `herd` go."""
    with SpanCollector() as spans:
        yield spans


@pytest.fixture(scope="package")
def folder(tmp_path_factory, demo_dir) -> Path:
    """A copy of the demo model, to take away from replicas that start."""
    return Path(shutil.copytree(demo_dir, tmp_path_factory.mktemp("model") / "demo"))


@pytest.fixture(scope="package")
def herd(collector, folder) -> Iterator[Application]:
    """`herd serve` with it; requests are traced whose clients ask for it, and a heartbeat is missed after 3 seconds."""
    traced = (f"trace.endpoint={collector.endpoint}", "trace.sample=0")
    with served(*traced, "experts.lease_s=3", model=str(folder)) as application:
        yield application
