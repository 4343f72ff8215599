"""Tests of the chart need helm. Without it they are skipped; where CI is set they fail, as nobody reads skips there."""

from __future__ import annotations

import os

import pytest

from tests.chart.programs import WHY_NOT, find_program


@pytest.fixture(autouse=True, scope="session")
def needs_helm() -> None:
    """Skip, or fail, without helm."""
    if find_program("helm") is None:
        if os.environ.get("CI"):
            pytest.fail(f"the chart is not tested: {WHY_NOT}")
        pytest.skip(WHY_NOT)
