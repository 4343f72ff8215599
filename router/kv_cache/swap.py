"""A place outside the cache for what sequences had computed when they made room for others.

Taking it back costs a copy; without it, the tokens are computed again. Which is cheaper is measured, not assumed: see
`SwapSpace.is_worth`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import KvStorage, Piece
from router.paging.chunks import chunk_start
from router.paging.sequence_pages import SequencePages

_FIRST_BYTES_PER_S = 1e9
"""Assumed speed of a copy until one is measured; low for any machine, so that guessing wrong costs little."""


@dataclass(frozen=True, slots=True)
class SwappedSequence:
    """Keys and values of positions [0, num_tokens) in global layers, and of the current chunk in local ones."""

    num_tokens: int
    local_start: int
    """First position kept of the local layers."""
    global_parts: tuple[Tensor, ...]
    """As `KvStorage.parts`, each [num_tokens, ...], in host memory."""
    local_parts: tuple[Tensor, ...]
    """The same, [num_tokens - local_start, ...]."""

    @property
    def num_bytes(self) -> int:
        """Return the memory this takes."""
        return sum(part.nbytes for part in (*self.global_parts, *self.local_parts))


class SwapSpace:
    """Saves and restores sequences' keys and values.

    Args:
        storage: the cache.
        layout: of the cache.
        limit_bytes: most memory to take; 0: nothing is ever worth saving.
    """

    def __init__(self, storage: KvStorage, layout: CacheLayout, limit_bytes: int) -> None:
        self._storage = storage
        self._layout = layout
        self._limit_bytes = limit_bytes
        self._bytes_per_s = _FIRST_BYTES_PER_S
        self.used_bytes = 0

    def is_worth(self, pages: SequencePages, tokens_per_s: float) -> bool:
        """Tell whether a sequence is better saved than computed again.

        Args:
            pages: of the sequence.
            tokens_per_s: how fast prompts are computed; 0: not known, then it is saved if there is room.
        """
        num_bytes = self._bytes_of(pages)
        if not pages.num_tokens or self.used_bytes + num_bytes > self._limit_bytes:
            return False
        copies_s = 2 * num_bytes / self._bytes_per_s
        return not tokens_per_s or copies_s < pages.num_tokens / tokens_per_s

    def save(self, pages: SequencePages) -> SwappedSequence:
        """Copy a sequence's keys and values out of the cache."""
        started_s = time.perf_counter()
        start, stop = chunk_start(pages.num_tokens, self._layout.chunk), pages.num_tokens
        saved = SwappedSequence(
            stop,
            start,
            self._copies(False, pages.global_table.pieces(0, stop) if self._layout.global_layers else ()),
            self._copies(True, pages.local_table.pieces(start, stop) if self._layout.local_layers else ()),
        )
        self.used_bytes += saved.num_bytes
        self._bytes_per_s = saved.num_bytes / max(time.perf_counter() - started_s, 1e-9)
        return saved

    def restore(self, saved: SwappedSequence, pages: SequencePages, start: int) -> None:
        """Copy what was saved back to pages that hold the same positions, and forget it.

        Args:
            saved: by `save`.
            pages: held for positions up to `saved.num_tokens`.
            start: first position the pages do not have anyhow.
        """
        kinds = (
            (False, saved.global_parts, 0, pages.global_table, bool(self._layout.global_layers)),
            (True, saved.local_parts, saved.local_start, pages.local_table, bool(self._layout.local_layers)),
        )
        for is_local, parts, first, table, exists in kinds:
            low = max(start, first)
            if not exists or low >= saved.num_tokens:
                continue
            slots = torch.tensor(table.slots(low, saved.num_tokens), dtype=torch.int64)
            for target, part in zip(self._storage.parts(is_local), parts, strict=True):
                target.index_copy_(0, slots.to(target.device), part[low - first :].to(target.device))
        self.drop(saved)

    def drop(self, saved: SwappedSequence) -> None:
        """Forget what was saved."""
        self.used_bytes -= saved.num_bytes

    def _copies(self, is_local: bool, pieces: Sequence[Piece]) -> tuple[Tensor, ...]:
        if not pieces:
            return ()
        return tuple(
            torch.cat([part[first : first + count] for first, count in pieces]).cpu()
            for part in self._storage.parts(is_local)
        )

    def _bytes_of(self, pages: SequencePages) -> int:
        num_local = pages.num_tokens - chunk_start(pages.num_tokens, self._layout.chunk)
        return pages.num_tokens * self._layout.global_token_bytes + num_local * self._layout.local_token_bytes
