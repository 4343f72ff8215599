"""Cuts a batch into pieces that are computed one after the other, so that others may pass between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from experts.merge import MergedBatch


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive rows of a batch."""

    expert_ids: tuple[int, ...]
    token_counts: tuple[int, ...]
    hidden_ND: Tensor


def pieces(batch: MergedBatch, most_tokens: int) -> Iterator[Piece]:
    """Yield a batch's rows in order, whole experts together where they fit: then no weight is read twice.

    Args:
        batch: sorted by expert.
        most_tokens: of a piece; at least 1.
    """
    ids: list[int] = []
    counts: list[int] = []
    start = stop = 0
    for expert, num_tokens in zip(batch.expert_ids, batch.token_counts, strict=True):
        left = num_tokens
        while left:
            room = most_tokens - (stop - start)
            if room <= 0 or (ids and left > room):
                yield Piece(tuple(ids), tuple(counts), batch.hidden_ND[start:stop])
                ids, counts, start = [], [], stop
                continue
            taken = min(left, room)
            ids.append(expert)
            counts.append(taken)
            stop += taken
            left -= taken
    yield Piece(tuple(ids), tuple(counts), batch.hidden_ND[start:stop])
