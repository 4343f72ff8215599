"""A step's tokens laid end to end: what each row is, sees and writes, and how a step is cut into batches."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from router.batch import Batch, Span, split
from router.kv_cache.layout import CacheLayout
from router.paging.blocks import BlockChain
from router.paging.page_table import PageTable
from router.paging.sequence_pages import SequencePages
from router.seen import Seen
from tests.tiny import TINY

CPU = torch.device("cpu")
PAGE = 4


@dataclass
class Step:
    """Spans whose pages lie scattered over two pools, and who keeps which position in which slot."""

    spans: list[Span]
    chunk: int | None
    owner_global: dict[int, tuple[int, int]]
    owner_local: dict[int, tuple[int, int]]

    @property
    def layout(self) -> CacheLayout:
        return CacheLayout(replace(TINY, attention_chunk=self.chunk), "float32", PAGE)

    @property
    def rows(self) -> list[tuple[int, int]]:
        """Return (span, position) of every token in order."""
        return [(i, span.start + k) for i, span in enumerate(self.spans) for k in range(len(span.ids))]


@st.composite
def steps(draw):
    chunk = draw(st.sampled_from([None, 4, 8, 24]))
    lone = st.tuples(st.integers(0, 60), st.just(1))
    sizes = draw(st.lists(lone | st.tuples(st.integers(0, 60), st.integers(1, 30)), min_size=1, max_size=9))
    return make_step(sizes, chunk, seed=draw(st.integers(0, 99)), is_scattered=draw(st.booleans()))


def make_step(sizes, chunk, seed=0, is_scattered=True) -> Step:
    order = list(range(400))
    if is_scattered:
        random.Random(seed).shuffle(order)
    free, owners = {False: iter(order), True: iter(order)}, ({}, {})
    spans = []
    for index, (start, length) in enumerate(sizes):
        stop = start + length
        first_local = start // chunk * chunk // PAGE if chunk else 0
        tables = (PageTable(PAGE), PageTable(PAGE, first_local))
        for is_local, table in enumerate(tables):
            table.append(next(free[bool(is_local)]) for _ in range(table.first, -(-stop // PAGE)))
            for position in range(table.first * PAGE, stop):
                owners[is_local][table.slot(position)] = (index, position)
        pages = SequencePages(*tables, BlockChain(PAGE), num_tokens=start)
        num_logits = 1 + seed % length
        spans.append(Span(pages, start, [1000 * index + position for position in range(start, stop)], num_logits))
    return Step(spans, chunk, *owners)


def seen_by_row(seen: Seen, num_rows: int) -> list[list[int]]:
    """Return the slots that each row sees, all of them once."""
    found: list[list[int]] = [[] for _ in range(num_rows)]
    for segment in seen.segments:
        past = [slot for group in segment.past for first, count in group for slot in range(first, first + count)]
        own = [slot for first, count in segment.own for slot in range(first, first + count)]
        for row in range(segment.row_start, segment.row_stop):
            assert not found[row], "a row is in two segments"
            found[row] = past + own[: row - segment.row_start + 1]
    for group in seen.together:
        for row, slots, mask in zip(
            group.rows_B.tolist(), group.slots_BS.tolist(), group.mask_BS.tolist(), strict=True
        ):
            assert not found[row], "a row is in two segments"
            found[row] = [slot for slot, hidden in zip(slots, mask, strict=True) if not hidden]
    return found


@given(steps())
def test_every_row_writes_its_own_slot_and_sees_its_sequence_up_to_itself(step):
    batch = Batch.of(step.spans, step.layout, CPU)
    kinds = [(batch.globally, step.owner_global, None)]
    if step.chunk:
        kinds.append((batch.locally, step.owner_local, step.chunk))
    assert batch.positions_T.tolist() == [position for _, position in step.rows]
    for seen, owner, chunk in kinds:
        assert [owner[slot] for slot in seen.slots_T.tolist()] == step.rows
        for (span, position), slots in zip(step.rows, seen_by_row(seen, batch.num_tokens), strict=True):
            first = position // chunk * chunk if chunk else 0
            assert [owner[slot] for slot in slots] == [(span, known) for known in range(first, position + 1)]


@given(steps())
def test_logits_are_wanted_of_the_last_tokens_of_each_span(step):
    batch = Batch.of(step.spans, step.layout, CPU)
    wanted = [token for span in step.spans for token in span.ids[len(span.ids) - span.num_logits :]]
    assert batch.ids_T[batch.logit_rows].tolist() == wanted


def test_a_kind_of_layer_that_the_model_lacks_is_left_out():
    step = make_step([(3, 5)], None)
    batch = Batch.of(step.spans, step.layout, CPU)
    assert batch.locally is None
    only_local = CacheLayout(replace(TINY, attention_chunk=8, nope_layers=()), "float32", PAGE)
    assert Batch.of(make_step([(3, 5)], 8).spans, only_local, CPU).globally is None


def test_several_lone_tokens_with_short_pasts_are_attended_to_together():
    step = make_step([(30, 1), (31, 1), (5, 9), (29, 1), (33, 1)], 8)
    seen = Batch.of(step.spans, step.layout, CPU).globally
    assert sorted(row for group in seen.together for row in group.rows_B.tolist()) == [0, 1, 11, 12]
    assert [(segment.row_start, segment.row_stop) for segment in seen.segments] == [(2, 11)]


@given(steps(), st.integers(1, 4))
def test_batches_of_a_step_hold_its_tokens_in_order_and_are_equally_large(step, num_parts):
    parts = split(step.spans, num_parts)
    assert 1 <= len(parts) <= num_parts
    cut = [span for part in parts for span in part]
    assert [token for span in cut for token in span.ids] == [token for span in step.spans for token in span.ids]
    sizes = [sum(len(span.ids) for span in part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
    assert all(span.ids for span in cut)


@given(steps(), st.integers(1, 4))
def test_batches_of_a_step_know_where_their_tokens_are_and_whose_logits_are_wanted(step, num_parts):
    whole = Batch.of(step.spans, step.layout, CPU)
    batches = [Batch.of(part, step.layout, CPU) for part in split(step.spans, num_parts)]
    for name in ("ids_T", "positions_T"):
        assert torch.equal(torch.cat([getattr(batch, name) for batch in batches]), getattr(whole, name))
    slots = torch.cat([batch.globally.slots_T for batch in batches])
    assert torch.equal(slots, whole.globally.slots_T)
    wanted = torch.cat([batch.ids_T[batch.logit_rows] for batch in batches])
    assert torch.equal(wanted, whole.ids_T[whole.logit_rows])


@pytest.mark.parametrize("num_parts", [1, 2])
def test_a_single_token_is_one_batch(num_parts):
    step = make_step([(7, 1)], 8)
    assert [[span.start for span in part] for part in split(step.spans, num_parts)] == [[7]]
