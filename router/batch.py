"""The tokens of one step: which rows belong to which sequence, and whose logits are wanted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from router.kv_cache import CacheLayout, SequenceCache


@dataclass(frozen=True, slots=True)
class Span:
    """New tokens of one sequence."""

    cache: SequenceCache
    start: int
    """Absolute position of the first; the cache holds all before it."""
    ids: Sequence[int]
    """Their token ids, at least one."""
    wants_all_logits: bool = False
    """True: the logits of every token; False: of the last one only."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows [row_start, row_stop) of the step that lie in one chunk of one sequence."""

    cache: SequenceCache
    position: int
    row_start: int
    row_stop: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The step's tokens laid end to end."""

    ids_T: Tensor
    positions_T: Tensor
    segments: tuple[Segment, ...]
    logit_rows: Tensor
    """[rows] int64, the rows whose logits are wanted, in the order of the spans."""

    @classmethod
    def of(cls, spans: Sequence[Span], layout: CacheLayout, device: torch.device) -> Batch:
        """Lay out the spans in the order given."""
        ids: list[int] = []
        positions: list[int] = []
        segments: list[Segment] = []
        logit_rows: list[int] = []
        for span in spans:
            base = len(ids) - span.start
            stop = span.start + len(span.ids)
            for low, high in layout.segments(span.start, stop):
                segments.append(Segment(span.cache, low, base + low, base + high))
            ids.extend(span.ids)
            positions.extend(range(span.start, stop))
            logit_rows.extend(range(base + span.start, base + stop) if span.wants_all_logits else [base + stop - 1])
        return cls(
            torch.tensor(ids, dtype=torch.int64, device=device),
            torch.tensor(positions, dtype=torch.int64, device=device),
            tuple(segments),
            torch.tensor(logit_rows, dtype=torch.int64, device=device),
        )
