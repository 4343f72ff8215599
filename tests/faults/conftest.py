"""One running Herd with two routers for all tests of a module: `--dist loadfile` lets one worker run them all."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.herd_process import HerdProcess


@pytest.fixture(scope="module")
def herd() -> Iterator[HerdProcess]:
    """`herd serve` with the demo model and two routers."""
    with HerdProcess("--set", "router.replicas=2") as process:
        yield process
