"""Tells when another project's package answers to the name of one of ours: plain top-level names can be shadowed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

PACKAGES = ("cluster", "context", "experts", "router", "models", "protos")
ROOT = Path(__file__).resolve().parent.parent


def check_imports() -> None:
    """Check that each of our packages is found in this project, here and so in the processes that are started.

    Raises:
        ImportShadowed: another one comes first.
    """
    from protos.errors import ImportShadowed  # may itself be shadowed: `find_intruder` does not need it

    if message := find_intruder():
        raise ImportShadowed(message)


def find_intruder(search_path: Sequence[str] | None = None) -> str | None:
    """Return a sentence about the first of our packages that is another's, None when all are ours.

    Args:
        search_path: folders to look in; None: those of this process.
    """
    for name in PACKAGES:
        found = PathFinder.find_spec(name, sys.path if search_path is None else search_path)
        origin = Path(found.origin).resolve() if found and found.origin else None
        if origin is None or origin.parent != ROOT / name:
            return (
                f"expected the package {name!r} in {ROOT}, found {origin or 'none'}: rename or uninstall that one, or "
                "take its folder out of PYTHONPATH"
            )
    return None
