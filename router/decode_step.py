"""A decode step on one GPU, its experts beside it: one token of each sequence, and nothing that the host waits for.

What differs from step to step lies in `DecodeInputs`, at the same place and in the same form every time: so a step can
be recorded once and replayed (`decode_graphs`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.gpu.attention_pages import AttentionPages, choose_splits
from models.gpu.moe import DecodeExperts, ResidentExperts
from models.gpu.residual import Addend, add_norm
from models.llama4.attention import PositionTables
from models.llama4.decoder import Decoder, DecoderLayer
from router.batch import Span
from router.gpu_attention import attend_layer
from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import KvStorage
from router.paging.chunks import chunk_start

_ALIGNMENT = 4
"""Of what lies in the inputs' memory, in numbers of 32 bits: kernels read 16 bytes at once."""


@dataclass(frozen=True, slots=True)
class _Section:
    """A part of the inputs' memory."""

    start: int
    shape: tuple[int, ...]

    @property
    def stop(self) -> int:
        return self.start + int(np.prod(self.shape))


class DecodeInputs:
    """What a step of at most so many tokens reads, in one piece of the device's memory, filled by one copy.

        number of tokens | ids | positions | slots, global and local | queries, the same | pages of both

    Args:
        num_rows: most tokens [B].
        num_pages: most pages of all sequences together.
        layout: of the cache.
        device: where the step computes.
    """

    def __init__(self, num_rows: int, num_pages: int, layout: CacheLayout, device: torch.device) -> None:
        self.num_rows = num_rows
        self._layout = layout
        sections, start = [], 0
        for shape in ((1,), (num_rows,), (num_rows,), (2, num_rows), (2, num_rows, 4), (num_pages,)):
            sections.append(_Section(start, shape))
            start = -(-sections[-1].stop // _ALIGNMENT) * _ALIGNMENT
        on_host = torch.zeros(start, dtype=torch.int32, pin_memory=device.type == "cuda")
        self._on_host, self._on_device = on_host, on_host.to(device, copy=True)
        self._first_page = sections[-1].start
        self._copied = torch.cuda.Event() if device.type == "cuda" else None
        host: list[np.ndarray] = [on_host.numpy()[each.start : each.stop].reshape(each.shape) for each in sections]
        self._count, self._ids, self._positions, self._slots, self._queries, self._pages = host
        there = [self._on_device[each.start : each.stop].view(each.shape) for each in sections]
        self.num_there, self.ids_B, self.positions_B, self.slots_2B, self.queries_2B4, self.pages_P = there
        self.clear()

    def clear(self) -> None:
        """Let there be no token."""
        self._fill(())

    def fill(self, spans: Sequence[Span]) -> bool:
        """Take the tokens of a step; return False where it is no such step.

        That is one of a single token of each span, not too many of them nor of their pages, with keys and values of
        all layers in the cache.
        """
        if len(spans) > self.num_rows or any(len(span.ids) != 1 or span.segments is not None for span in spans):
            return False
        return self._fill(spans)

    def _fill(self, spans: Sequence[Span]) -> bool:
        if self._copied is not None:
            self._copied.synchronize()  # the last copy may still read what is written now
        self._count[0] = len(spans)
        self._ids[len(spans) :] = self._positions[len(spans) :] = 0
        self._slots[:] = -1
        self._queries[:] = 0
        num_pages = 0
        for row, span in enumerate(spans):
            self._ids[row], self._positions[row] = span.ids[0], span.start
            for kind, first in self._firsts(span.start):
                table = span.pages.local_table if kind else span.pages.global_table
                pages = table.pages_of(first, span.start + 1)
                stop = num_pages + len(pages)
                if stop > len(self._pages):
                    return False
                self._pages[num_pages:stop] = pages
                self._slots[kind, row] = pages[-1] * table.page_tokens + span.start % table.page_tokens
                self._queries[kind, row] = row, 1, span.start + 1 - first, num_pages
                num_pages = stop
        used = self._first_page + num_pages
        self._on_device[:used].copy_(self._on_host[:used], non_blocking=True)
        if self._copied is not None:
            self._copied.record()
        return True

    def _firsts(self, position: int) -> list[tuple[int, int]]:
        """Return the first position seen by (0: global, 1: local layers) from a position, of each kind there is."""
        firsts = [(0, 0)] if self._layout.global_layers else []
        chunk = self._layout.chunk
        return [*firsts, (1, chunk_start(position, chunk))] if chunk else firsts


def decode_readings(
    decoder: Decoder, layout: CacheLayout, inputs: DecodeInputs, longest: int
) -> tuple[AttentionPages, AttentionPages]:
    """Return how a decode step reads the cache in global layers and in local ones.

    Args:
        decoder: on a GPU.
        layout: of the cache.
        inputs: of the step.
        longest: most tokens of a sequence.
    """
    programs = inputs.num_rows * decoder.config.num_kv_heads

    def reading(kind: int, most_keys: int) -> AttentionPages:
        splits = choose_splits(programs, most_keys, decoder.device)
        return AttentionPages(inputs.queries_2B4[kind], inputs.pages_P, layout.page_tokens, 1, splits)

    return reading(0, longest), reading(1, min(longest, layout.chunk or longest))


class DecodeStep:
    """Computes logits of up to so many tokens, and writes their keys and values into the cache.

    Args:
        decoder: on a GPU.
        experts: of each MoE layer, on the same.
        storage: the cache, which keeps what is computed as it is.
        layout: of the cache.
        inputs: read by every step.
        longest: most tokens of a sequence.
    """

    def __init__(
        self,
        decoder: Decoder,
        experts: Mapping[int, ResidentExperts],
        storage: KvStorage,
        layout: CacheLayout,
        inputs: DecodeInputs,
        longest: int,
    ) -> None:
        assert storage.plain is not None
        self._decoder, self._storage, self._inputs = decoder, storage.plain, inputs
        self.experts = {layer: DecodeExperts(each, inputs.num_rows) for layer, each in experts.items()}
        """By layer."""
        self._readings = decode_readings(decoder, layout, inputs, longest)

    def __call__(self) -> Tensor:
        """Return the logits [B, V] float32; rows of tokens that are not there hold anything."""
        decoder, inputs = self._decoder, self._inputs
        eps = decoder.config.norm_eps
        tables = decoder.attention.tables(inputs.positions_B)
        hidden_BD, addend = decoder.embed(inputs.ids_B), None
        for index, layer in enumerate(decoder.layers):
            normed = add_norm(hidden_BD, addend, layer.attn_norm, eps)
            addend = Addend(self._attention(index, layer, normed.normed_TD, tables))
            if layer.gate_ED is None:
                assert layer.dense is not None
                normed = add_norm(normed.hidden_TD, addend, layer.ffn_norm, eps)
                addend = Addend(layer.dense(normed.normed_TD))
            else:
                normed, addend = self.experts[index](
                    normed.hidden_TD, addend, layer.ffn_norm, eps, layer.gate_ED, inputs.num_there
                )
            hidden_BD = normed.hidden_TD
        return decoder.head(add_norm(hidden_BD, addend, decoder.norm_D, eps).normed_TD)

    def _attention(self, index: int, layer: DecoderLayer, normed_BD: Tensor, tables: PositionTables) -> Tensor:
        kind = int(self._decoder.config.is_local(index))
        slots_B, pages = self._inputs.slots_2B[kind], self._readings[kind]
        return attend_layer(self._decoder, index, layer, normed_BD, tables, slots_B, pages, self._storage[index])
