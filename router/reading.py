"""What the tokens of a step see of the cache, as the CPU's attention kernel reads it: by runs of consecutive slots."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models.cpu.attention import Reading
from router.seen import Place, own_slots


def list_readers(places: Sequence[Place], device: torch.device) -> Reading:
    """Return what tokens at some places see; the places cover the step's rows in order."""
    readers: list[tuple[int, int, int, int, int]] = []
    runs: list[tuple[int, int]] = []
    for place in places:
        pieces = place.table.pieces(place.first, place.high)
        readers.append((place.row, place.high - place.low, place.low + 1 - place.first, len(runs), len(pieces)))
        runs += pieces
    readers_R5, runs_N2 = (torch.tensor(numbers, dtype=torch.int64, device=device) for numbers in (readers, runs))
    return Reading(own_slots(places, device), readers_R5, runs_N2)
