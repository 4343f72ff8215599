"""Tells when another project's package answers to the name of one of ours: plain top-level names can be shadowed."""

from __future__ import annotations

import sys
from importlib.machinery import PathFinder
from pathlib import Path

from protos.errors import ImportShadowed

PACKAGES = ("cluster", "experts", "router", "models", "protos")
ROOT = Path(__file__).resolve().parent.parent


def check_imports(search_path: list[str] | None = None) -> None:
    """Check that each of our packages is found in this project, in this process and in those it starts.

    Args:
        search_path: folders Python looks in; None: this process's.

    Raises:
        ImportShadowed: another one comes first.
    """
    for name in PACKAGES:
        found = find_package(name, search_path)
        if found is None or found.parent != ROOT / name:
            raise ImportShadowed(
                f"expected the package {name!r} in {ROOT}, found {found or 'none'}: rename or uninstall the other one, "
                "or take its folder out of PYTHONPATH"
            )


def find_package(name: str, search_path: list[str] | None = None) -> Path | None:
    """Return the file that `import name` would run; None where there is none."""
    if search_path is None and name in sys.modules:
        origin = sys.modules[name].__file__
    else:
        spec = PathFinder.find_spec(name, search_path)
        origin = spec.origin if spec else None
    return Path(origin).resolve() if origin else None
