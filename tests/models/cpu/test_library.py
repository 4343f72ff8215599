"""The library in processes of its own: compiled once, or done without."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
IS_LOADED = "from models.cpu.library import load_library; print(load_library() is not None)"
WHY = "from models.cpu.library import load_library, why_unavailable; print(load_library(), why_unavailable())"
PACKED = """
import torch
from models.linear import pack_linear
print(type(pack_linear(torch.ones(64, 64).bfloat16())).__name__)
"""
LOG = "import logging; logging.basicConfig(level=logging.INFO)\n"


def start(program: str, cache: Path, **environment: str) -> subprocess.Popen[str]:
    """Start a program whose user's cache is a folder."""
    inherited = {name: value for name, value in os.environ.items() if name not in ("CC", "HERD_CPU_KERNELS")}
    return subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=inherited | {"XDG_CACHE_HOME": str(cache)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return what a program says in the end, and its log."""
    out, log = process.communicate(timeout=120)
    assert process.returncode == 0, log
    return out.strip(), log


@pytest.fixture(scope="module")
def filled_cache(kernels, tmp_path_factory) -> Path:
    """A user's cache that one process before has put the library into."""
    folder = tmp_path_factory.mktemp("cache")
    assert output(start(IS_LOADED, folder)) == ("True", "")
    return folder


def test_the_library_is_compiled_once_and_found_after(filled_cache):
    (library,) = (filled_cache / "herd").iterdir()
    before = library.stat()
    assert output(start(IS_LOADED, filled_cache)) == ("True", "")
    assert [library] == list((filled_cache / "herd").iterdir())
    assert (library.stat().st_mtime_ns, library.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


@pytest.mark.usefixtures("kernels")
def test_processes_that_start_at_once_all_get_it(tmp_path):
    processes = [start(IS_LOADED, tmp_path) for _ in range(2)]
    assert [output(process) for process in processes] == [("True", "")] * 2
    assert len(list((tmp_path / "herd").iterdir())) == 1


def test_switched_off_leaves_weights_to_torchs_operators(tmp_path):
    assert output(start(WHY, tmp_path, HERD_CPU_KERNELS="0")) == ("None HERD_CPU_KERNELS=0 switches them off", "")
    assert "RowMajorLinear" not in output(start(PACKED, tmp_path, HERD_CPU_KERNELS="0"))[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("compiler", ["/bin/false", "/no/such/compiler"])
def test_without_a_compiler_that_works_there_is_a_line_in_the_log(compiler, tmp_path):
    out, log = output(start(LOG + WHY, tmp_path, CC=compiler))
    assert out.startswith("None ")
    assert compiler in out
    (line,) = log.splitlines()
    assert line.startswith("INFO:models.cpu.library:")
    assert compiler in line
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("kernels")
def test_a_cache_that_cannot_be_written_is_done_without(tmp_path):
    (tmp_path / "herd").write_text("not a folder")
    assert output(start(LOG + IS_LOADED, tmp_path)) == ("True", "")


def test_a_damaged_library_is_compiled_anew(filled_cache, tmp_path):
    (library,) = (filled_cache / "herd").iterdir()
    (tmp_path / "herd").mkdir()
    damaged = tmp_path / "herd" / library.name
    damaged.write_bytes(library.read_bytes()[:100])
    out, _ = output(start(LOG + WHY, tmp_path))
    assert out.endswith(" None")
    assert damaged.stat().st_size == library.stat().st_size


def test_small_numbers_stay_what_they_are_beside_the_library(filled_cache):
    """Linked with -ffast-math it would have its process round them to zero."""
    program = f"import torch; {IS_LOADED}; print(torch.tensor([1e-44]).mul(1).item() > 0, 1e-310 * 1 > 0)"
    assert output(start(program, filled_cache))[0].split() == ["True"] * 3
