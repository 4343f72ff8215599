"""One running Herd for all tests of a module: `--dist loadfile` lets one worker run them all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.chaos.application import Application
from tests.e2e.served import served
from tests.e2e.span_collector import SpanCollector


@pytest.fixture(scope="module")
def collector() -> Iterator[SpanCollector]:
    """Where the spans of `herd` go."""
    with SpanCollector() as spans:
        yield spans


@pytest.fixture(scope="module")
def herd(collector) -> Iterator[Application]:
    """`herd serve` with the demo model; only requests whose clients ask for it are traced."""
    with served(f"trace.endpoint={collector.endpoint}", "trace.sample=0") as application:
        yield application
