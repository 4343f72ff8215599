"""Which Herd this is."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def herd_version() -> str:
    """Return the version of the installed distribution; "unknown" when it runs from a folder that is not installed."""
    try:
        return version("llama-herd")
    except PackageNotFoundError:
        return "unknown"
