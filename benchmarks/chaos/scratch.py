"""A folder for one application's files: what is in it afterwards, the application has left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path


class Scratch:
    """Context manager: an empty folder with a short path, and a file system of its own if its size is bounded.

    Args:
        size_mb: megabytes it holds at most; needs the right to mount. None: as much as there is.
    """

    def __init__(self, size_mb: int | None = None) -> None:
        self._size_mb = size_mb
        self._shared_before: set[str] = set()
        self.folder = Path()

    def leftovers(self) -> list[str]:
        """Return what is in it now, and what is in shared memory that was not there before."""
        here = [path.name for path in self.folder.iterdir()]
        return here + sorted(_shared() - self._shared_before)

    def __enter__(self) -> Scratch:
        self._shared_before = _shared()
        # Below it are Unix sockets, whose paths may be 107 characters long.
        self.folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
        if self._size_mb is not None:
            command = ["mount", "-t", "tmpfs", "-o", f"size={self._size_mb}m", "herd-chaos", str(self.folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                self.folder.rmdir()
                raise PermissionError(f"expected the right to mount a small disk (root), found: {done.stderr.strip()}")
        return self

    def __exit__(self, *_: object) -> None:
        if self._size_mb is not None:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def _shared() -> set[str]:
    """Return the names in shared memory that have anything to do with us: others use it too."""
    try:
        return {f"/dev/shm/{name}" for name in os.listdir("/dev/shm") if "herd" in name or "plasma" in name}
    except OSError:
        return set()
