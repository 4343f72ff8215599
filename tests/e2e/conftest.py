"""One running Herd for all tests of a module: `--dist loadfile` lets one worker run them all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.chaos.application import Application
from tests.e2e.served import served


@pytest.fixture(scope="module")
def herd() -> Iterator[Application]:
    """`herd serve` with the demo model."""
    with served() as application:
        yield application
