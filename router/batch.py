"""The tokens of one step: which rows belong to which sequence, what they may see, and whose logits are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import Piece
from router.paging.page_table import PageTable
from router.paging.sequence_pages import SequencePages

_WORTH_ITS_OWN = 512
"""Tokens from which a piece of cache is attended to by itself: shorter neighbours are cheaper to copy together."""


@dataclass(frozen=True, slots=True)
class Span:
    """New tokens of one sequence."""

    pages: SequencePages
    """Pages are held for every position up to the last new one."""
    start: int
    """Absolute position of the first; the cache holds all before it."""
    ids: Sequence[int]
    """Their token ids, at least one."""
    num_logits: int = 1
    """How many of them, from the last one back, need logits."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a segment's tokens see in the layers of one kind."""

    past: tuple[tuple[Piece, ...], ...]
    """Groups of pieces, each read at once; every token sees all of them. A lone token's own slot is among them."""
    own: tuple[Piece, ...]
    """The tokens' own slots: each sees those up to itself. Empty for a lone token."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [row_start, row_stop) of the step: consecutive tokens in one chunk of one sequence."""

    row_start: int
    row_stop: int
    globally: Seen
    locally: Seen


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens laid end to end."""

    ids_T: Tensor
    positions_T: Tensor
    global_slots_T: Tensor
    """[T] int64: where global layers keep each token. Empty if the model has none, as below."""
    local_slots_T: Tensor
    segments: tuple[Segment, ...]
    logit_rows: Tensor
    """[rows] int64, the rows whose logits are wanted, in the order of the spans."""

    @property
    def num_tokens(self) -> int:
        """Return T."""
        return self.ids_T.shape[0]

    @classmethod
    def of(cls, spans: Sequence[Span], layout: CacheLayout, device: torch.device) -> Batch:
        """Lay out the spans in the order given."""
        ids: list[int] = []
        positions: list[int] = []
        global_slots: list[int] = []
        local_slots: list[int] = []
        segments: list[Segment] = []
        logit_rows: list[int] = []
        for span in spans:
            base = len(ids) - span.start
            stop = span.start + len(span.ids)
            for low, high in layout.segments(span.start, stop):
                segments.append(_segment(span.pages, low, high, base, layout))
            ids.extend(span.ids)
            positions.extend(range(span.start, stop))
            if layout.global_layers:
                global_slots += span.pages.global_table.slots(span.start, stop)
            if layout.local_layers:
                local_slots += span.pages.local_table.slots(span.start, stop)
            logit_rows.extend(range(base + stop - span.num_logits, base + stop))
        ids_T, positions_T, global_slots_T, local_slots_T, rows = (
            torch.tensor(numbers, dtype=torch.int64, device=device)
            for numbers in (ids, positions, global_slots, local_slots, logit_rows)
        )
        return cls(ids_T, positions_T, global_slots_T, local_slots_T, tuple(segments), rows)


def split(spans: Sequence[Span], num_parts: int) -> list[list[Span]]:
    """Cut a step's spans into at most so many parts of nearly as many tokens, in order.

    A span may be cut, too: the part with its first tokens has to write a layer's keys before the next one reads them.
    """
    left = sum(len(span.ids) for span in spans)
    parts: list[list[Span]] = []
    rest = list(spans)
    for num_left in range(num_parts, 0, -1):
        room = -(-left // num_left)
        part: list[Span] = []
        while rest and room:
            span = rest.pop(0)
            if len(span.ids) > room:
                first, second = _cut(span, room)
                rest.insert(0, second)
                span = first
            part.append(span)
            room -= len(span.ids)
            left -= len(span.ids)
        if part:
            parts.append(part)
    return parts


def _cut(span: Span, num_tokens: int) -> tuple[Span, Span]:
    num_second = len(span.ids) - num_tokens
    first = Span(span.pages, span.start, span.ids[:num_tokens], max(span.num_logits - num_second, 0))
    return first, Span(span.pages, span.start + num_tokens, span.ids[num_tokens:], min(span.num_logits, num_second))


def _segment(pages: SequencePages, low: int, high: int, base: int, layout: CacheLayout) -> Segment:
    nothing = Seen((), ())
    chunk_start = low // layout.chunk * layout.chunk if layout.chunk else 0
    return Segment(
        row_start=base + low,
        row_stop=base + high,
        globally=_seen(pages.global_table, 0, low, high) if layout.global_layers else nothing,
        locally=_seen(pages.local_table, chunk_start, low, high) if layout.local_layers else nothing,
    )


def _seen(table: PageTable, first: int, low: int, high: int) -> Seen:
    if high - low == 1:
        return Seen(_groups(table.pieces(first, high)), ())
    return Seen(_groups(table.pieces(first, low)) if low > first else (), tuple(table.pieces(low, high)))


def _groups(pieces: Sequence[Piece]) -> tuple[tuple[Piece, ...], ...]:
    """Put short neighbours together."""
    if len(pieces) == 1:
        return (tuple(pieces),)
    groups: list[list[Piece]] = []
    is_open = False
    for piece in pieces:
        if is_open and piece[1] < _WORTH_ITS_OWN:
            groups[-1].append(piece)
        else:
            groups.append([piece])
        is_open = piece[1] < _WORTH_ITS_OWN
    return tuple(tuple(group) for group in groups)
