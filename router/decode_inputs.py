"""What decode steps read that differs from one to the next: numbers in one piece of memory, filled by one copy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch

from router.batch import Span
from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import KvStorage
from router.paging.chunks import chunk_start
from router.paging.paged_kv import PagingPlan

_ROOM_FOR_SHARED = 2
"""How many times the pages there are all sequences' may be: those that several share count for each."""
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


@dataclass(frozen=True, slots=True)
class DecodeCache:
    """The cache, as decode steps are made for it."""

    storage: KvStorage
    """Keeps what is computed as it is."""
    layout: CacheLayout
    plan: PagingPlan
    slots: int
    """Most sequences of a step."""
    longest: int
    """Most tokens of a sequence."""

    def inputs(self, num_rows: int, device: torch.device) -> DecodeInputs:
        """Return the inputs of a step of at most so many tokens."""
        num_pages = _ROOM_FOR_SHARED * (self.plan.num_global_pages + self.plan.num_local_pages)
        return DecodeInputs(num_rows, num_pages, self.layout, device)


class HasInputs(Protocol):
    """A step."""

    @property
    def inputs(self) -> DecodeInputs:
        """Return what it reads."""


Step = TypeVar("Step", bound=HasInputs)


def filled(steps: Iterable[Step], spans: Sequence[Span]) -> Step | None:
    """Return the first of some steps, ascending in size, that is large enough, its inputs filled; None: it is no such.

    Args:
        steps: to choose from.
        spans: of the tokens.
    """
    step = next((each for each in steps if len(spans) <= each.inputs.num_rows), None)
    return step if step is not None and step.inputs.fill(spans) else None


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
