"""The Dockerfile: what linters say, what it copies, who runs in it. That it builds, `.ci/image` proves."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "Dockerfile"


def instructions() -> list[list[str]]:
    """The Dockerfile's instructions, words of one to a list."""
    text = DOCKERFILE.read_text().replace("\\\n", " ")
    return [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def packages() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]


def test_a_linter_has_nothing_to_say():
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if hadolint is None:
        assert not os.environ.get("CI"), "hadolint is not installed"
        pytest.skip("hadolint is not installed: pip install -e '.[dev]'")
    done = subprocess.run([hadolint, str(DOCKERFILE)], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_package_is_copied_and_sent_to_the_builder():
    copied = {words[1] for words in instructions() if words[0] == "COPY"}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(packages()) <= copied
    assert set(packages()) <= sent


def test_nobody_is_root_in_it():
    users = [words[1] for words in instructions() if words[0] == "USER"]
    assert users == ["1000"]
