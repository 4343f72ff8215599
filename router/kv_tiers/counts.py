"""What the tiers tell of themselves. Plain data without torch: it travels with the engine's load."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class TierCounts:
    """What tiers hold and did since the start."""

    host_bytes: int = 0
    """Bytes of memory that hold pages."""
    disk_bytes: int = 0
    """Bytes of the file that hold pages."""
    restored_host_bytes: int = 0
    """Bytes that came back from memory."""
    restored_disk_bytes: int = 0
    """Bytes that came back from disk."""
    restore_host_s: float = 0.0
    """Seconds that took."""
    restore_disk_s: float = 0.0
    """Seconds that took, waiting for other restores not counted."""
    num_damaged: int = 0
    """Pages on disk that were not what had been written; their tokens were computed again."""
