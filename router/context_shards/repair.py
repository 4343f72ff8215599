"""Computing lost segments again, from the tokens of their sequence and the segments before them.

A segment begins with an attention chunk, so its tokens see nothing of local layers before it: they are read like a
prompt of their own, whose past in global layers is on the other shards. Segments are repaired in order, as later ones
see earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from router.batch import Span
from router.context_shards.segments import Segment
from router.paging.paged_kv import PagedKv
from router.paging.sequence_pages import SequencePages
from router.sequence import Sequence


@dataclass(slots=True)
class _Repair:
    segment: Segment
    segment_id: int
    """Under which its tokens are written; another one if it was lost once more."""
    pages: SequencePages
    """For the local layers' keys and values of its tokens, until it is done."""


class Repairs:
    """What is to be computed again, a step at a time.

    Args:
        kv: the cache of local layers.
        step_tokens: most tokens of a step.
    """

    def __init__(self, kv: PagedKv, step_tokens: int) -> None:
        self.num_tokens = 0
        """Tokens computed again since the start."""
        self._kv = kv
        self._step_tokens = step_tokens
        self._under_way: dict[Sequence, _Repair] = {}

    def next_span(self, broken: Iterable[Sequence]) -> tuple[Sequence, Span] | None:
        """Return the next tokens to compute again, of the first sequence there are pages for; None if nobody's.

        Args:
            broken: sequences whose lost segments have a place again.
        """
        for sequence in broken:
            assert sequence.segments is not None
            repair = self._repair_of(sequence)
            start = repair.pages.num_tokens
            num_tokens = self._num_next(repair, min(repair.segment.stop, sequence.segments.num_tokens) - start)
            if num_tokens:
                self._kv.grow(repair.pages, num_tokens)
                ids = sequence.ids[start : start + num_tokens]
                return sequence, Span(repair.pages, start, ids, segments=sequence.segments)
        return None

    def advance(self, sequence: Sequence, span: Span) -> None:
        """Take note that a span was computed."""
        repair, segments = self._under_way[sequence], sequence.segments
        assert segments is not None
        self._kv.advance(repair.pages, sequence.ids, len(span.ids), publish=False)
        self.num_tokens += len(span.ids)
        if repair.pages.num_tokens >= min(repair.segment.stop, segments.num_tokens):
            repair.segment.is_lost = False
            self.drop(sequence)

    def drop(self, sequence: Sequence) -> None:
        """Give up the repair of a sequence, if one is under way."""
        if (repair := self._under_way.pop(sequence, None)) is not None:
            self._kv.release(repair.pages)

    def _repair_of(self, sequence: Sequence) -> _Repair:
        """Return the repair under way, a new one if there is none or its segment was lost again."""
        assert sequence.segments is not None
        segment = sequence.segments.lost[0]
        repair = self._under_way.get(sequence)
        if repair is None or repair.segment is not segment or repair.segment_id != segment.segment_id:
            self.drop(sequence)
            repair = _Repair(segment, segment.segment_id, self._kv.begin_at(segment.start))
            self._under_way[sequence] = repair
        return repair

    def _num_next(self, repair: _Repair, num_left: int) -> int:
        """Return how many tokens the next step takes: at most to the chunk's end, and what there are pages for."""
        num_tokens = min(self._step_tokens, num_left)
        if (chunk := self._kv.plan.chunk) is not None:
            num_tokens = min(num_tokens, chunk - repair.pages.num_tokens % chunk)
        while num_tokens and not self._kv.can_grow(repair.pages, num_tokens):
            num_tokens //= 2
        return num_tokens
