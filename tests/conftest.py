"""Folders that tests read."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Reference data beside the checkout: goldens/ and data/. Tests that ask for it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no reference data at {SHARED}")
    return SHARED


@pytest.fixture(scope="session")
def demo_dir() -> Path:
    """The demo model that the repository ships."""
    return ROOT / "models" / "demo"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say in every run, quiet ones too, that a part of the tests could not run."""
    if not SHARED.is_dir():
        terminalreporter.write_line(f"SKIPPED every test against reference data: there is no {SHARED}", yellow=True)
