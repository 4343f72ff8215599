"""Where attention chunks begin: local layers see nothing before."""

from __future__ import annotations


def chunk_start(position: int, chunk: int | None) -> int:
    """Return the first position of the chunk that a position lies in; 0 without chunks."""
    return 0 if chunk is None else position // chunk * chunk
