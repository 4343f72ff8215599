"""The states of a page: free, held, kept; who gets which one, and what goes first when none is free."""

from __future__ import annotations

import pytest

from router.paging.page_pool import OutOfPages, PagePool


def keep(pool: PagePool, pages: list[int]) -> None:
    """Publish pages under their own numbers and give them back, last first."""
    for page in pages:
        pool.publish(page, b"%d" % page)
    for page in reversed(pages):
        pool.give_back(page)


def grow_in_turn(pool: PagePool, num_holders: int, num_pages: int, expect: int) -> list[list[int]]:
    tables: list[list[int]] = [[] for _ in range(num_holders)]
    for step in range(num_pages):
        for table in tables:
            table += pool.take(1, after=table[-1] if table else None, expect=max(0, expect - step))
    return tables


def is_consecutive(pages: list[int]) -> bool:
    return pages == list(range(pages[0], pages[0] + len(pages)))


def test_a_pool_gives_consecutive_pages():
    assert PagePool(8).take(5) == [0, 1, 2, 3, 4]


def test_pages_behind_the_last_one_are_preferred():
    pool = PagePool(20)
    first, second = pool.take(4), pool.take(4)
    for page in first[2:]:
        pool.give_back(page)
    assert pool.take(2, after=first[1]) == first[2:]
    assert pool.take(2, after=second[-1]) == [8, 9]


def test_a_new_holder_opens_where_it_and_what_it_expects_fit_best():
    pool = PagePool(30)
    held = pool.take(30)
    for page in [*held[2:10], *held[20:24]]:
        pool.give_back(page)
    assert pool.take(1, expect=3) == [20]
    assert pool.take(1, expect=4) == [2]


def test_holders_that_grow_in_turn_stay_consecutive():
    assert all(is_consecutive(table) for table in grow_in_turn(PagePool(32 * 20), 32, 20, expect=19))


def test_a_wrong_expectation_costs_contiguity_and_nothing_else():
    pool = PagePool(64)
    tables = grow_in_turn(pool, 4, 16, expect=3)
    pool.check()
    assert sorted(page for table in tables for page in table) == list(range(64))


def test_reserved_pages_count_as_free_and_go_to_others_when_nothing_else_is_free():
    pool = PagePool(8)
    first = pool.take(1, expect=7)
    assert pool.num_available == 7
    second = pool.take(2)
    pool.check()
    assert first == [0]
    assert second == [4, 5], "the holder keeps the nearer half of its reservation"
    assert pool.take(3, after=first[-1]) == [1, 2, 3]
    assert sorted(pool.take(2)) == [6, 7]


def test_a_reservation_ends_with_its_holder():
    pool = PagePool(8)
    (page,) = pool.take(1, expect=7)
    pool.give_back(page)
    pool.check()
    assert pool.take(8) == list(range(8))


def test_a_pool_without_enough_pages_refuses_and_changes_nothing():
    pool = PagePool(4)
    keep(pool, pool.take(2))
    pool.take(1)
    with pytest.raises(OutOfPages, match="expected 4 free pages, found 3 of 4"):
        pool.take(4)
    pool.check()
    assert (pool.num_available, pool.num_held, pool.num_kept) == (3, 1, 2)


def test_no_pages_can_be_taken_from_a_pool_without_any():
    pool = PagePool(0)
    pool.check()
    assert pool.take(0) == []
    with pytest.raises(OutOfPages):
        pool.take(1)


def test_a_shared_page_is_free_when_its_last_holder_gives_it_back():
    pool = PagePool(2)
    (page,) = pool.take(1)
    pool.share(page)
    pool.give_back(page)
    assert pool.num_held == 1
    pool.give_back(page)
    assert (pool.num_held, pool.num_kept, pool.num_available) == (0, 0, 2)


def test_a_published_page_is_kept_and_can_be_shared_again():
    pool = PagePool(2)
    (page,) = pool.take(1)
    assert pool.publish(page, b"key") == page
    pool.give_back(page)
    assert (pool.num_kept, pool.num_available) == (1, 2)
    found = pool.find(b"key")
    assert found == page
    pool.share(found)
    pool.check()
    assert (pool.num_kept, pool.num_held) == (0, 1)


def test_a_key_that_is_known_stays_with_its_first_page():
    pool = PagePool(4)
    first, second = pool.take(2)
    pool.publish(first, b"key")
    assert pool.publish(second, b"key") == first
    pool.give_back(second)
    pool.check()
    assert pool.num_kept == 0


def test_deeper_pages_of_a_table_are_evicted_before_earlier_ones():
    evicted: list[bytes] = []
    pool = PagePool(4, on_evict=lambda page, key: evicted.append(key))
    keep(pool, pool.take(4))
    for _ in range(4):
        pool.take(1)
    assert evicted == [b"3", b"2", b"1", b"0"]
    assert pool.num_evicted == 4


def test_a_page_used_again_is_evicted_last():
    pool = PagePool(3)
    keep(pool, pool.take(3))
    pool.share(2)
    pool.give_back(2)
    pool.take(2)
    assert pool.find(b"2") == 2
    assert pool.find(b"0") is None


def test_no_kept_page_goes_while_a_long_enough_range_is_free():
    pool = PagePool(64)
    keep(pool, pool.take(32))
    pool.take(32)
    assert pool.num_kept == 32


def test_a_pool_full_of_kept_pages_gives_consecutive_ones_and_frees_no_more_than_an_eighth():
    pool = PagePool(160)
    keep(pool, pool.take(160))
    pages = pool.take(1, expect=9)
    assert is_consecutive(pages + pool.take(9, after=pages[0]))
    assert pool.num_kept == 150
    pool.take(1, expect=1000)
    assert pool.num_available - pool.num_kept < 160 // 8
    pool.check()


def test_clearing_frees_every_kept_page():
    pool = PagePool(6)
    keep(pool, pool.take(4))
    pool.clear_kept()
    pool.check()
    assert (pool.num_kept, pool.find(b"0"), pool.take(6)) == (0, None, [0, 1, 2, 3, 4, 5])


def test_nothing_is_found_after_everything_was_unpublished():
    pool = PagePool(6)
    held = pool.take(2)
    pool.publish(held[0], b"held")
    pool.unpublish_all()
    pool.check()
    assert pool.find(b"held") is None


def test_a_page_is_not_given_back_twice():
    pool = PagePool(2)
    (page,) = pool.take(1)
    pool.give_back(page)
    with pytest.raises(AssertionError, match="no holder"):
        pool.give_back(page)


def test_a_free_page_is_not_shared():
    with pytest.raises(AssertionError, match="is free"):
        PagePool(2).share(0)
