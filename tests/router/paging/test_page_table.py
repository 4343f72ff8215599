"""Where a sequence's tokens are: slots, pieces, and pages that were dropped."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.paging.page_table import PageTable


def table(*pages: int, page_tokens: int = 4, first: int = 0) -> PageTable:
    made = PageTable(page_tokens, first)
    made.append(pages)
    return made


def test_consecutive_pages_are_one_piece():
    assert table(3, 4, 5).pieces(0, 12) == [(12, 12)]


def test_a_gap_begins_a_new_piece():
    assert table(3, 4, 9).pieces(2, 11) == [(14, 6), (36, 3)]


def test_pieces_may_begin_and_end_inside_a_page():
    assert table(7).pieces(1, 3) == [(29, 2)]
    assert table(7).pieces(2, 2) == []


def test_a_slot_is_the_page_and_the_offset_in_it():
    assert [table(3, 9).slot(position) for position in (0, 3, 4, 7)] == [12, 15, 36, 39]


def test_the_last_page_follows_appends_and_drops():
    made = table(3, 4)
    assert made.last_page == 4
    made.append([9])
    assert made.last_page == 9
    made.drop_front(3)
    assert made.last_page is None


def test_a_table_may_begin_in_the_middle_of_a_sequence():
    made = table(5, 6, first=10)
    assert (made.first, made.num_pages, made.slot(40), made.pages()) == (10, 12, 20, [5, 6])


def test_dropped_pages_come_back_in_order_and_cannot_be_read():
    made = table(3, 4, 9, 10)
    assert made.drop_front(3) == [3, 4, 9]
    assert made.drop_front(2) == []
    assert (made.first, made.num_held, made.pages()) == (3, 1, [10])
    with pytest.raises(AssertionError, match="was dropped"):
        made.pieces(11, 13)
    with pytest.raises(AssertionError, match="not in"):
        made.slot(11)


def test_positions_without_a_page_cannot_be_read():
    with pytest.raises(AssertionError, match="never appended"):
        table(3).pieces(0, 5)
    with pytest.raises(AssertionError, match="not in"):
        table(3).slot(4)


def test_a_long_table_is_one_run():
    made = table(*range(100_000))
    assert made.num_runs == 1
    assert made.pieces(0, 400_000) == [(0, 400_000)]


@given(st.lists(st.integers(0, 12), min_size=1, max_size=20, unique=True), st.integers(0, 5), st.data())
def test_every_view_of_a_table_tells_the_same(pages, first, data):
    made = table(*pages, page_tokens=3, first=first)
    dropped = made.drop_front(data.draw(st.integers(0, first + len(pages) - 1)))
    assert dropped + made.pages() == pages
    start = data.draw(st.integers(made.first * 3, made.num_pages * 3 - 1))
    stop = data.draw(st.integers(start, made.num_pages * 3))
    expected = [pages[position // 3 - first] * 3 + position % 3 for position in range(start, stop)]
    assert made.slots(start, stop) == expected
    assert [made.slot(position) for position in range(start, stop)] == expected
    pieces = made.pieces(start, stop)
    assert [slot for begin, length in pieces for slot in range(begin, begin + length)] == expected
    assert all(begin + length != after for (begin, length), (after, _) in pairwise(pieces))
    held = dict.fromkeys(pages[position // 3 - first] for position in range(start, stop))
    assert made.pages_of(start, stop).tolist() == list(held)
