"""The cache's tensors: keys and values of every layer by slot.

A slot is one token's place in every layer of one kind: page · page_tokens + offset. A slot's row is [G, C]: so writing
a step's tokens is one copy per layer, whoever they belong to, and consecutive slots are read as a view, without one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from router.kv_cache.codec import KvCodec, choose_codec
from router.kv_cache.layout import CacheLayout
from router.paging.paged_kv import PagingPlan

Piece = tuple[int, int]
"""(first slot, number of slots) of consecutive slots."""


class KvStorage:
    """Keys and values by layer and slot.

    Args:
        layout: of the model.
        plan: how many pages of each kind. On a CPU, memory is taken as pages are written the first time.
        dtype: what the model computes in, and what is read.
        device: where it does.
    """

    def __init__(self, layout: CacheLayout, plan: PagingPlan, dtype: torch.dtype, device: torch.device) -> None:
        codec = choose_codec(layout.kv_dtype, dtype)
        heads = (layout.config.num_kv_heads, layout.config.head_size)
        self.page_tokens = plan.page_tokens
        self._kinds = {
            is_local: [_LayerStore(codec, pages * plan.page_tokens, heads, device) for _ in layers]
            for is_local, layers, pages in (
                (False, layout.global_layers, plan.num_global_pages),
                (True, layout.local_layers, plan.num_local_pages),
            )
        }
        places = {
            layer: (is_local, index)
            for is_local, layers in ((False, layout.global_layers), (True, layout.local_layers))
            for index, layer in enumerate(layers)
        }
        self._layers = [self._kinds[kind][index] for kind, index in (places[layer] for layer in sorted(places))]
        plain = [(store.keys.parts[0], store.values.parts[0]) for store in self._layers]
        self.plain = plain if codec.is_plain else None
        """Keys and values [slots, G, C] of each layer, where they are stored as they are computed."""

    def write(self, layer: int, slots_T: Tensor, k_TGC: Tensor, v_TGC: Tensor) -> None:
        """Store new tokens.

        Args:
            layer: decoder layer, 0-based.
            slots_T: [T] int64, slots of the layer's kind, no two alike.
            k_TGC: [T, G, C].
            v_TGC: [T, G, C].
        """
        store = self._layers[layer]
        store.keys.write(slots_T, k_TGC)
        store.values.write(slots_T, v_TGC)

    def read(self, layer: int, pieces: Sequence[Piece]) -> tuple[Tensor, Tensor]:
        """Return keys and values [G, S, C] of pieces, joined. Cost: one piece is a view if stored as it is computed."""
        store = self._layers[layer]
        return store.keys.read(pieces), store.values.read(pieces)

    def gather(self, layer: int, slots_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return keys and values [B, G, S, C] of any slots [B, S]. Cost: copies them."""
        store = self._layers[layer]
        return store.keys.gather(slots_BS), store.values.gather(slots_BS)

    def copy_page(self, is_local: bool, source: int, target: int) -> None:
        """Copy a page of one kind in every layer."""
        size = self.page_tokens
        for part in self.parts(is_local):
            part[target * size : (target + 1) * size] = part[source * size : (source + 1) * size]

    def parts(self, is_local: bool) -> Iterator[Tensor]:
        """Yield every tensor of one kind, [slots, ...], always in the same order."""
        for store in self._kinds[is_local]:
            yield from store.keys.parts
            yield from store.values.parts


class _LayerStore:
    """One layer's keys and values."""

    def __init__(self, codec: KvCodec, num_slots: int, heads: tuple[int, int], device: torch.device) -> None:
        self.keys = _Rows(codec, num_slots, heads, device)
        self.values = _Rows(codec, num_slots, heads, device)


class _Rows:
    """Rows [G, C] by slot, as a codec stores them."""

    def __init__(self, codec: KvCodec, num_slots: int, heads: tuple[int, int], device: torch.device) -> None:
        self._codec = codec
        self.parts = codec.allocate(num_slots, heads, device)
        self._by_head = tuple(part.transpose(0, 1) for part in self.parts)

    def write(self, slots_T: Tensor, rows_TGC: Tensor) -> None:
        for part, encoded in zip(self.parts, self._codec.encode(rows_TGC), strict=True):
            part.index_copy_(0, slots_T, encoded)

    def read(self, pieces: Sequence[Piece]) -> Tensor:
        if len(pieces) == 1:
            first, count = pieces[0]
            return self._codec.decode(*(part.narrow(1, first, count) for part in self._by_head))
        joined = (torch.cat([part.narrow(1, first, count) for first, count in pieces], dim=1) for part in self._by_head)
        return self._codec.decode(*joined)

    def gather(self, slots_BS: Tensor) -> Tensor:
        flat = slots_BS.flatten()
        rows = (part.index_select(0, flat).unflatten(0, slots_BS.shape).transpose(1, 2) for part in self.parts)
        return self._codec.decode(*rows)
