"""Slots of a shared segment: bounded, never given out twice, free when both users are done."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from protos.segment import HEADER_BYTES
from protos.shared_memory import SharedSegment
from router.transport.slots import Slots

NUM_PAGES = 32


@pytest.fixture
def slots():
    segment = SharedSegment.create(HEADER_BYTES + NUM_PAGES * 4096)
    segment.end_offer()
    return Slots(segment)


def test_a_slot_is_free_when_it_was_answered_and_let_go_in_either_order(slots):
    for first, second in (("answered", "let_go"), ("let_go", "answered")):
        slot = slots.take(5000)
        slot.lend()
        getattr(slot, first)()
        assert slots.free_bytes == (NUM_PAGES - 2) * 4096
        getattr(slot, second)()
        assert slots.free_bytes == NUM_PAGES * 4096


def test_a_slot_that_was_never_sent_needs_no_answer(slots):
    slots.take(1).let_go()
    assert slots.free_bytes == NUM_PAGES * 4096


def test_letting_go_twice_frees_nothing_of_the_next_dispatch(slots):
    old = slots.take(4096)
    old.let_go()
    new = slots.take(4096)
    old.let_go()
    assert new.offset == old.offset
    assert slots.take(4096).offset != new.offset


def test_without_room_there_is_no_slot(slots):
    assert slots.take((NUM_PAGES + 1) * 4096) is None
    assert slots.take(0) is None
    whole = slots.take(NUM_PAGES * 4096)
    assert slots.take(1) is None
    whole.let_go()
    assert slots.take(1).offset == HEADER_BYTES


@pytest.mark.parametrize("seed", range(20))
def test_slots_in_use_never_overlap_and_all_come_back(slots, seed):
    draw = random.Random(seed)
    used: dict[int, object] = {}
    for _ in range(400):
        if used and draw.random() < 0.5:
            slot = used.pop(draw.choice(list(used)))
            for step in draw.sample([slot.answered, slot.let_go, slot.let_go], 3):
                step()
        elif (slot := slots.take(draw.randint(1, 20_000))) is not None:
            slot.lend()
            used[slot.offset] = slot
        ranges = sorted((slot.offset, slot.offset + slot.num_bytes) for slot in used.values())
        assert all(stop <= start for (_, stop), (start, _) in pairwise(ranges))
        assert slots.free_bytes == NUM_PAGES * 4096 - sum(stop - start for start, stop in ranges)
    for slot in used.values():
        slot.answered()
        slot.let_go()
    assert slots.take(NUM_PAGES * 4096) is not None
