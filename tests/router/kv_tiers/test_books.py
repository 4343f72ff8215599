"""Slots of a bounded space are given, lent and freed, and none is lost or given twice."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from router.kv_tiers.books import SlotBooks
from tests.router.kv_tiers.content import block


def test_the_least_recently_used_block_makes_room_first():
    books = SlotBooks(3)
    for number in range(3):
        books.add(block(number), 1)
    assert books.find(block(0)) == (0,)
    assert books.oldest() == (block(1), (1,))
    assert not books.has_room(1)


def test_lent_slots_are_nobody_elses():
    books = SlotBooks(2)
    books.add(block(0), 1)
    slots = books.lend(block(0))
    assert block(0) not in books
    assert not set(books.add(block(1), 1)) & set(slots)
    assert not books.has_room(1)
    books.give_back(slots)
    assert books.has_room(1)
    books.check()


def test_blocks_found_at_the_start_keep_their_places():
    books = SlotBooks(10)
    books.place(block(0), (4, 1))
    books.place(block(1), (2,))
    books.close_gaps()
    books.check()
    assert books.num_used == 3
    added = books.add(block(2), 7)
    assert sorted((*added, 4, 1, 2)) == list(range(10))
    books.check()


@settings(max_examples=200)
@given(
    num_slots=st.integers(0, 12),
    actions=st.lists(st.tuples(st.sampled_from("arlgf"), st.integers(0, 9), st.integers(1, 4)), max_size=60),
)
def test_every_slot_is_always_in_one_state(num_slots, actions):
    books, lent = SlotBooks(num_slots), []
    for action, number, count in actions:
        name = block(number)
        if action == "a" and name not in books and books.has_room(count):
            assert len(books.add(name, count)) == count
        elif action == "r" and name in books:
            books.remove(name)
        elif action == "l" and name in books:
            lent.append(books.lend(name))
        elif action == "g" and lent:
            books.give_back(lent.pop())
        elif action == "f":
            assert (books.find(name) is not None) == (name in books)
        books.check()
        assert books.num_used <= num_slots
