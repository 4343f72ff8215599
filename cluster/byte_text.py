"""Bytes for people."""

from __future__ import annotations


def format_bytes(count: float) -> str:
    """Write a number of bytes, for example "1.5 GiB"."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
