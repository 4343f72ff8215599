"""All tests of the chart need helm."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True, scope="session")
def all_need_helm(needs_helm: None) -> None:
    """Skip, or fail, without helm."""
