"""Which positions of a sequence lie on which shard."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Segment:
    """Consecutive positions of one sequence, on one shard."""

    segment_id: int
    """Unique among this router's."""
    shard_id: str
    start: int
    """Its first position."""
    stop: int
    """One past the last it may have."""
    is_lost: bool = False
    """True until what was here is computed again: its shard is gone."""


@dataclass(slots=True)
class SequenceSegments:
    """A sequence's segments, in order and without gaps from position 0."""

    segment_tokens: int
    """Positions of each; whole attention chunks, so that each can be computed by itself from what lies before it."""
    promised: int
    """Tokens the sequence may get: room for them is kept."""
    segments: list[Segment] = field(default_factory=list)
    num_tokens: int = 0
    """Tokens whose keys and values are there, lost segments aside."""

    @property
    def covered(self) -> int:
        """Return the positions that have a segment."""
        return self.segments[-1].stop if self.segments else 0

    @property
    def lost(self) -> list[Segment]:
        """Return the segments to be computed again, in order."""
        return [segment for segment in self.segments if segment.is_lost]

    def before(self, position: int) -> Iterator[tuple[Segment, int]]:
        """Yield each segment that begins before a position, and how many of its tokens lie before it."""
        for segment in self.segments:
            if segment.start >= position:
                return
            yield segment, min(segment.stop, position) - segment.start

    def between(self, start: int, stop: int) -> Iterator[tuple[Segment, int, int]]:
        """Yield each segment that has some of the positions [start, stop), and the first and the end of those."""
        for segment in self.segments:
            low, high = max(start, segment.start), min(stop, segment.stop)
            if low < high:
                yield segment, low, high

    def lose(self, segment_ids: Collection[int]) -> None:
        """Take note that segments are gone."""
        for segment in self.segments:
            segment.is_lost = segment.is_lost or segment.segment_id in segment_ids
