"""Durations as people write them."""

from __future__ import annotations

import math
import re

from protos.errors import InvalidRequest

_UNITS_S = {"": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_PATTERN = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-z]*)\s*")


def parse_duration(text: str, name: str) -> float:
    """Return seconds, positive: "500ms" is 0.5, "2m" is 120, a bare number counts seconds.

    Args:
        text: what was written.
        name: of the option, for the error.

    Raises:
        InvalidRequest: it is no duration.
    """
    match = _PATTERN.fullmatch(text.lower())
    seconds = float(match[1]) * _UNITS_S.get(match[2], math.nan) if match else math.nan
    if not 0 < seconds < math.inf:
        raise InvalidRequest(f"{name}: expected a duration such as 500ms, 30s or 2m, found {text!r}: correct it")
    return seconds


def format_duration(seconds: float) -> str:
    """Write seconds for people: "500 ms", "12.3 s", "4 min 5 s"."""
    if seconds < 1:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 120:
        return f"{seconds:.4g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"
