"""Tests of the chart need helm. Without it they are skipped; where CI is set they fail, as nobody reads skips there."""

from __future__ import annotations

import os

import pytest

from tests.chart.helm_program import WHY_NOT, find_helm


@pytest.fixture(autouse=True, scope="session")
def needs_helm() -> None:
    """Skip, or fail, without helm."""
    if find_helm() is None:
        if os.environ.get("CI"):
            pytest.fail(f"the chart is not tested: {WHY_NOT}")
        pytest.skip(WHY_NOT)
