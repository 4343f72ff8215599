"""Free pages as ranges: what is added coalesces, what is cut leaves the rest."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from router.paging.extents import Extents


def extents(*ranges: tuple[int, int]) -> Extents:
    made = Extents()
    for start, stop in ranges:
        made.add(start, stop)
    return made


def test_neighbours_become_one_range():
    assert extents((0, 2), (5, 6), (2, 5)).ranges() == [(0, 6)]


def test_the_smallest_range_that_fits_is_best():
    assert extents((0, 9), (10, 14), (20, 23)).best_start(3) == 20
    assert extents((0, 9), (10, 14), (20, 23)).best_start(4) == 10


def test_the_largest_range_is_best_when_none_fits():
    assert extents((0, 3), (10, 15)).best_start(100) == 10


def test_an_empty_set_has_no_best_range():
    assert extents().best_start(1) is None
    assert extents().longest == 0


def test_a_cut_takes_the_front_and_leaves_the_rest():
    made = extents((4, 10))
    made.cut(4, 2)
    assert (made.ranges(), made.num_pages, made.length_at(6), made.length_at(4)) == ([(6, 10)], 4, 4, 0)


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 6)), max_size=40))
def test_any_changes_leave_exactly_the_pages_that_were_added_and_not_cut(changes):
    made, pages = Extents(), set()
    for start, length in changes:
        wanted = set(range(start, start + length))
        if not wanted & pages:
            made.add(start, start + length)
            pages |= wanted
        elif length <= made.length_at(start):
            made.cut(start, length)
            pages -= wanted
        ranges = made.ranges()
        assert [page for low, high in ranges for page in range(low, high)] == sorted(pages)
        assert all(high < low for (_, high), (low, _) in pairwise(ranges))
        assert made.num_pages == len(pages)
        assert made.longest == max((high - low for low, high in ranges), default=0)
