"""What the tokens of a step see of the cache, in the layers of one kind.

Lone tokens, one per sequence that generates, are attended to together where their pasts are short: each by itself, the
calls would cost more than the arithmetic. Everything else is attended to segment by segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from router.kv_cache.storage import Piece
from router.paging.page_table import PageTable

_WORTH_ITS_OWN = 512
"""Tokens from which a piece of cache is attended to by itself: shorter neighbours are cheaper to copy together."""
_SHORT = 384
"""Longest past of a lone token that is copied to be attended to together with others. On one core of an AMD EPYC, 32
tokens of 12 heads over 170 each take half the time together, over 600 half as much again."""
_FEW = 4
"""Fewer lone tokens than this are not worth putting together."""
_SPREAD = 1.25
"""Pasts put together are at most this many times as long as the shortest of them."""


@dataclass(frozen=True, slots=True)
class SeenSegment:
    """Rows [row_start, row_stop) of the step: consecutive tokens in one chunk of one sequence."""

    row_start: int
    row_stop: int
    past: tuple[tuple[Piece, ...], ...]
    """Groups of pieces, each read at once; every token sees all of them. A lone token's own slot is among them."""
    own: tuple[Piece, ...]
    """The tokens' own slots: each sees those up to itself. Empty for a lone token."""


@dataclass(frozen=True, slots=True)
class SeenTogether:
    """Lone tokens of several sequences, their pasts padded to one length S."""

    rows_B: Tensor
    """[B] int64, their rows in the step."""
    slots_BS: Tensor
    """[B, S] int64; what pads is some slot that the mask hides."""
    mask_BS: Tensor
    """[B, S] float32, added to the scores: 0, or -inf where it pads."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a step's tokens see in the layers of one kind."""

    slots_T: Tensor
    """[T] int64: where each token's own keys and values go."""
    segments: tuple[SeenSegment, ...]
    together: tuple[SeenTogether, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """Consecutive tokens in one chunk of one sequence, and the positions that the layers of a kind keep of it."""

    table: PageTable
    first: int
    """First position kept."""
    low: int
    """Position of the first token."""
    high: int
    """One past that of the last."""
    row: int
    """Row of the first token in the step."""


def own_slots(places: Sequence[Place], device: torch.device) -> Tensor:
    """Return where the own keys and values of tokens at some places go, [T] int64, place after place."""
    slots = [slot for place in places for slot in place.table.slots(place.low, place.high)]
    return torch.tensor(slots, dtype=torch.int64, device=device)


def look_up(places: Sequence[Place], device: torch.device) -> Seen:
    """Return what tokens at some places see."""
    short = [place for place in places if place.high - place.low == 1 and place.high - place.first <= _SHORT]
    if len(short) < _FEW:
        short = []
    grouped = {place.row for place in short}
    return Seen(
        slots_T=own_slots(places, device),
        segments=tuple(_segment(place) for place in places if place.row not in grouped),
        together=tuple(_together(group, device) for group in _of_like_length(short)),
    )


def _segment(place: Place) -> SeenSegment:
    table, first, low, high = place.table, place.first, place.low, place.high
    if high - low == 1:
        return SeenSegment(place.row, place.row + 1, _groups(table.pieces(first, high)), ())
    past, own = _groups(table.pieces(first, low)), tuple(table.pieces(low, high))
    return SeenSegment(place.row, place.row + high - low, past, own)


def _groups(pieces: Sequence[Piece]) -> tuple[tuple[Piece, ...], ...]:
    """Put short neighbours together."""
    groups: list[list[Piece]] = []
    is_open = False
    for piece in pieces:
        if is_open and piece[1] < _WORTH_ITS_OWN:
            groups[-1].append(piece)
        else:
            groups.append([piece])
        is_open = piece[1] < _WORTH_ITS_OWN
    return tuple(tuple(group) for group in groups)


def _of_like_length(places: Sequence[Place]) -> list[list[Place]]:
    """Group places whose pasts are about equally long, so that little is padded."""
    groups: list[list[Place]] = []
    shortest = 0.0
    for place in sorted(places, key=lambda place: place.high - place.first):
        length = place.high - place.first
        if not groups or length > shortest * _SPREAD:
            groups.append([])
            shortest = length
        groups[-1].append(place)
    return groups


def _together(places: Sequence[Place], device: torch.device) -> SeenTogether:
    pasts = [place.table.slots(place.first, place.high) for place in places]
    longest = max(map(len, pasts))
    mask_BS = torch.zeros(len(pasts), longest)
    for row, past in enumerate(pasts):
        mask_BS[row, len(past) :] = -torch.inf
        past += past[-1:] * (longest - len(past))
    rows_B = torch.tensor([place.row for place in places], dtype=torch.int64, device=device)
    return SeenTogether(rows_B, torch.tensor(pasts, dtype=torch.int64, device=device), mask_BS.to(device))
