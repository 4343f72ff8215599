"""Commands that docs/planning.md names plan something, and the README names one; tests/docs types those of blocks."""

from __future__ import annotations

import json
import re

import pytest

from tests.cluster.test_cli import herd
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "planning.md").read_text()
COMMANDS = sorted(set(re.findall(r"`herd (plan [^`]*--gpus[^`]*)`", PAGE)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_page_plans_something(command):
    assert herd(*command.split()).returncode == 0


def test_the_page_has_the_memory_that_was_measured():
    for row in json.loads((ROOT / "benchmarks/results/plan_memory.json").read_text())["bytes"]:
        for value in (row["planned"], row["found"]):
            assert f"{value / 1e6:,.0f}" in PAGE


def test_the_readme_names_a_command_of_the_page():
    assert (
        "herd plan scout --gpus h100 --quantize int4 --context 256k --concurrency 1" in (ROOT / "README.md").read_text()
    )
