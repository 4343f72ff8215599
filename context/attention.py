"""One layer's step on a shard: write what is new, then attend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from context.segments import SegmentKey, SegmentStore
from models.llama4.softmax import Partial, partial_past


@dataclass(frozen=True, slots=True)
class Append:
    """New tokens of a segment."""

    key: SegmentKey
    start: int
    keys_TGC: Tensor
    values_TGC: Tensor


@dataclass(frozen=True, slots=True)
class Query:
    """Queries of one sequence over the first tokens of segments."""

    queries_THC: Tensor
    views: tuple[tuple[SegmentKey, int], ...]
    """(segment, number of tokens), at least one."""


def run_step(store: SegmentStore, layer: int, appends: Sequence[Append], queries: Sequence[Query]) -> list[Partial]:
    """Return each query's attention over the keys here.

    Args:
        store: what is held.
        layer: a global layer.
        appends: written first.
        queries: answered in order.

    Raises:
        BadDispatch: the layer is none of those held.
        ContextLost: tokens are missing.
        Overloaded: there is no room for the new ones.
    """
    store.check_layer(layer)
    for append in appends:
        store.write(append.key, layer, append.start, append.keys_TGC, append.values_TGC)
    return [
        partial_past(
            query.queries_THC,
            [piece for key, num_tokens in query.views for piece in store.read(key, layer, num_tokens)],
        )
        for query in queries
    ]
