"""Whether files are near: what file system a folder is on."""

from __future__ import annotations

import re
from pathlib import Path

_FAR = frozenset({"9p", "afs", "beegfs", "ceph", "cifs", "gfs2", "glusterfs", "gpfs", "lustre", "nfs", "nfs4", "smb3"})
"""File systems over a network, as the kernel calls them."""


def is_far(file_system: str) -> bool:
    """Tell whether a file system's files come over a network, by its name in the mount table.

    File systems in user space count: most of them are object stores.
    """
    return file_system in _FAR or file_system.startswith("fuse.")


def file_system_of(folder: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """Return the name of the file system that a folder is on; "" where the system does not say.

    Args:
        folder: absolute, without links.
        mounts: the mount table: ID, parent, device, root, mount point, options ..., "-", file system, ... Blanks in
            paths are octal numbers behind a backslash.
    """
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    found, longest = "", -1
    for line in lines:
        before, _, after = line.partition(" - ")
        point = Path(re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), before.split(" ")[4]))
        if folder.is_relative_to(point) and len(point.parts) >= longest:  # the last of several on one point is on top
            found, longest = after.split(" ")[0], len(point.parts)
    return found
