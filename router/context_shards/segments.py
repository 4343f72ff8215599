"""Which positions of a sequence lie on which shard."""

from __future__ import annotations

from collections.abc import Iterator
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


@dataclass(slots=True, eq=False)
class SequenceSegments:
    """A sequence's segments, in order and without gaps from position 0."""

    segment_tokens: int
    """Positions of each; whole attention chunks, so that each can be computed by itself from what lies before it."""
    promised: int
    """Tokens the sequence may get: room for them is kept."""
    segments: list[Segment] = field(default_factory=list)
    num_tokens: int = 0
    """Tokens whose keys and values were written, lost segments included."""
    lacking_since: float | None = None
    """Monotonic second since when there is no room for its next tokens; None: there is."""

    @property
    def covered(self) -> int:
        """Return the positions that have a segment."""
        return self.segments[-1].stop if self.segments else 0

    @property
    def lost(self) -> list[Segment]:
        """Return the segments to be computed again, in order."""
        return [segment for segment in self.segments if segment.is_lost]

    @property
    def num_held(self) -> int:
        """Return the tokens whose keys and values are there."""
        return self.num_tokens - sum(max(min(each.stop, self.num_tokens) - each.start, 0) for each in self.lost)

    def sizes_to_place(self) -> list[int]:
        """Return what each segment gets at most that has no place yet."""
        lost = [segment.start for segment in self.lost if not segment.shard_id]
        return [self.most_in(start) for start in (*lost, *range(self.covered, self.promised, self.segment_tokens))]

    def most_in(self, start: int) -> int:
        """Return the tokens that the segment which begins at a position gets at most."""
        return max(min(start + self.segment_tokens, self.promised) - start, 0)

    def before(self, position: int) -> Iterator[tuple[Segment, int]]:
        """Yield each segment that begins before a position, and how many of its tokens lie before it."""
        for segment, low, high in self.between(0, position):
            yield segment, high - low

    def between(self, start: int, stop: int) -> Iterator[tuple[Segment, int, int]]:
        """Yield each segment that has some of the positions [start, stop), and the first and the end of those."""
        last = -(-stop // self.segment_tokens)
        for segment in self.segments[start // self.segment_tokens : last]:
            yield segment, max(start, segment.start), min(stop, segment.stop)

    def cut_unplaced(self) -> list[Segment]:
        """Forget segments from the first that lost its place before it was written to; return those that have one.

        Nothing is written after it either, and segments have no gaps.
        """
        for index, segment in enumerate(self.segments):
            if not segment.shard_id and not segment.is_lost:
                cut = self.segments[index + 1 :]
                del self.segments[index:]
                return [each for each in cut if each.shard_id]
        return []
