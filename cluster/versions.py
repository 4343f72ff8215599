"""Which versions Herd needs, told without importing anything heavy."""

from __future__ import annotations

import platform
import re
from importlib.metadata import PackageNotFoundError, version

from protos.errors import BadConfig

OLDEST = {"torch": "2.11", "ray": "2.60"}
"""Oldest version of each package that is known to work; pyproject.toml says the same."""
OLDEST_PYTHON = "3.11"


def check_versions() -> None:
    """Check the interpreter and the packages that matter most.

    Raises:
        BadConfig: one is missing or too old.
    """
    for name in OLDEST:
        check_version(name)


def check_version(name: str) -> str:
    """Return a package's version.

    Args:
        name: a key of OLDEST, or "python".

    Raises:
        BadConfig: it is missing or too old.
    """
    oldest = OLDEST_PYTHON if name == "python" else OLDEST[name]
    try:
        found = platform.python_version() if name == "python" else version(name)
    except PackageNotFoundError:
        raise BadConfig(f"expected {name} {oldest} or newer, found none: run `make setup`") from None
    if _numbers(found) < _numbers(oldest):
        raise BadConfig(f"expected {name} {oldest} or newer, found {found}: run `make setup`, or upgrade {name}")
    return found


def _numbers(text: str) -> tuple[int, ...]:
    """Return the numbers a version begins with: "2.13.0+cpu" is (2, 13, 0)."""
    leading = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in leading[0].split(".")) if leading else ()
