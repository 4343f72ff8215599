"""docs/planning.md shows what the command prints, and the README names a command that works."""

from __future__ import annotations

import json
import re

import pytest

from tests.cluster.test_cli import herd
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "planning.md").read_text()
BLOCKS = re.findall(r"```console\n\$ herd (plan .*)\n((?s:.*?))```", PAGE)
COMMANDS = sorted(set(re.findall(r"`herd (plan [^`]*--gpus[^`]*)`", PAGE)))


@pytest.mark.parametrize(("command", "shown"), BLOCKS, ids=[command for command, _ in BLOCKS])
def test_the_page_shows_what_the_command_prints(command, shown):
    done = herd(*command.split(), COLUMNS="100")
    printed = "\n".join(line.rstrip() for line in (done.stdout + done.stderr).splitlines())
    beginning = shown.rstrip().removesuffix("...").rstrip()
    assert printed.startswith(beginning)


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
