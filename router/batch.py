"""The tokens of one step: which rows belong to which sequence, what they may see, and whose logits are wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from models.cpu.attention import Reading
from router.context_shards.attention import ContextSpan
from router.context_shards.segments import SequenceSegments
from router.gpu_reading import GpuReading
from router.kv_cache.layout import CacheLayout
from router.paging.chunks import chunk_start
from router.paging.sequence_pages import SequencePages
from router.seen import Place, Seen, look_up

Look = Callable[[Sequence[Place], torch.device], Seen | Reading | GpuReading]
"""(places, device) -> what tokens at these places see."""


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
    segments: SequenceSegments | None = None
    """Where keys and values of global layers are, if on context shards."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Tokens laid end to end."""

    ids_T: Tensor
    positions_T: Tensor
    globally: Seen | Reading | GpuReading | None
    """What they see in global layers; None if the model has none, or on shards. Both are of one type."""
    locally: Seen | Reading | GpuReading | None
    """The same of local layers."""
    logit_rows: Tensor
    """[rows] int64, the rows whose logits are wanted, in the order of the spans."""
    on_shards: tuple[ContextSpan, ...] = ()
    """All rows, if what they see in global layers is on context shards, else nothing."""

    @property
    def num_tokens(self) -> int:
        """Return T."""
        return self.ids_T.shape[0]

    @property
    def readings(self) -> dict[bool, Reading]:
        """Return what they see by whether a layer is local, if the batch is for the CPU's kernel, else nothing."""
        seen = {False: self.globally, True: self.locally}
        return {is_local: each for is_local, each in seen.items() if isinstance(each, Reading)}

    @classmethod
    def of(cls, spans: Sequence[Span], layout: CacheLayout, device: torch.device, look: Look = look_up) -> Batch:
        """Lay out the spans in the order given.

        Args:
            spans: of the step.
            layout: of the cache.
            device: where the tensors are wanted.
            look: writes down what tokens see, as those read it who compute the step (`Forward.look`).
        """
        ids: list[int] = []
        positions: list[int] = []
        global_places: list[Place] = []
        local_places: list[Place] = []
        logit_rows: list[int] = []
        on_shards: list[ContextSpan] = []
        for span in spans:
            base = len(ids) - span.start
            stop = span.start + len(span.ids)
            if span.segments is not None:
                on_shards.append(ContextSpan(span.segments, base + span.start, base + stop, span.start))
            elif layout.global_layers:
                global_places.append(Place(span.pages.global_table, 0, span.start, stop, base + span.start))
            if layout.chunk:
                for low, high in layout.segments(span.start, stop):
                    first = chunk_start(low, layout.chunk)
                    local_places.append(Place(span.pages.local_table, first, low, high, base + low))
            ids.extend(span.ids)
            positions.extend(range(span.start, stop))
            logit_rows.extend(range(base + stop - span.num_logits, base + stop))
        ids_T, positions_T, rows = (
            torch.tensor(numbers, dtype=torch.int64, device=device) for numbers in (ids, positions, logit_rows)
        )
        return cls(
            ids_T,
            positions_T,
            look(global_places, device) if global_places else None,
            look(local_places, device) if layout.chunk else None,
            rows,
            tuple(on_shards),
        )


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
    first = replace(span, ids=span.ids[:num_tokens], num_logits=max(span.num_logits - num_second, 0))
    second = replace(
        span, start=span.start + num_tokens, ids=span.ids[num_tokens:], num_logits=min(span.num_logits, num_second)
    )
    return first, second
