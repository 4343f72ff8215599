"""What the tokens of a step see of the cache, as a GPU's attention kernels read it: page by page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.config import ModelConfig
from models.gpu.attention_pages import AttentionPages, Reader, list_pages
from router.seen import Place, own_slots


@dataclass(frozen=True, slots=True)
class GpuReading:
    """Who reads what in the layers of one kind."""

    slots_T: Tensor
    """[T] int64: where each token's own keys and values go."""
    pages: AttentionPages


@dataclass(frozen=True, slots=True)
class GpuLook:
    """Writes down what tokens see, for a model's heads."""

    config: ModelConfig

    def __call__(self, places: Sequence[Place], device: torch.device) -> GpuReading:
        """Return what tokens at some places see; the places cover the step's rows in order."""
        readers = [
            Reader(
                place.row,
                place.high - place.low,
                place.low + 1 - place.first,
                place.table.pages_of(place.first, place.high),
            )
            for place in places
        ]
        groups, page_tokens = self.config.num_kv_heads, places[0].table.page_tokens
        pages = list_pages(readers, page_tokens, self.config.num_heads // groups, groups, device)
        return GpuReading(own_slots(places, device), pages)
