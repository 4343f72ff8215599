"""What a sequence may reuse, needs, publishes and gives back: pages of 4 tokens, chunks of 16 where there are any."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import pytest

from protos.errors import BadConfig
from router.paging.blocks import BlockChain
from router.paging.page_pool import OutOfPages
from router.paging.paged_kv import PageCopy, PagedKv, PagingPlan
from router.paging.refill import Block, Gap
from router.paging.sequence_pages import SequencePages

PLAN = PagingPlan(page_tokens=4, chunk=16, has_global=True, num_global_pages=64, num_local_pages=32)
GLOBAL_ONLY = replace(PLAN, chunk=None, num_local_pages=0)
LOCAL_ONLY = replace(PLAN, has_global=False, num_global_pages=0)
IDS = list(range(1000, 1100))


def paged(plan: PagingPlan = PLAN, **changes) -> PagedKv:
    return PagedKv(replace(plan, **changes))


def admit(kv: PagedKv, ids: list[int], **options) -> SequencePages:
    return kv.admit(ids, expect_tokens=options.pop("expect_tokens", len(ids)), **options)


def compute(kv: PagedKv, pages: SequencePages, ids: list[int], step: int = 7, **options) -> SequencePages:
    """Compute all of `ids` that is missing, in steps."""
    while pages.num_tokens < len(ids):
        num_tokens = min(step, len(ids) - pages.num_tokens)
        kv.grow(pages, num_tokens)
        kv.check()
        kv.advance(pages, ids, num_tokens, **options)
        kv.check()
    return pages


def run(kv: PagedKv, ids: list[int], **options) -> SequencePages:
    return compute(kv, admit(kv, ids), ids, **options)


def cache(kv: PagedKv, ids: list[int]) -> None:
    """Leave `ids` in the cache."""
    kv.release(run(kv, ids))


def found(kv: PagedKv, ids: list[int]) -> int:
    """Return how many tokens a new sequence finds, and let it go again."""
    pages = admit(kv, ids)
    num_cached = pages.num_cached
    kv.check()
    kv.release(pages)
    return num_cached


def drop(kv: PagedKv, is_local: bool, block: int) -> None:
    """Let the pool forget one kept block of IDS, as an eviction would."""
    pool = kv.local_pool if is_local else kv.global_pool
    page = pool.find(BlockChain(4, IDS).keys[block])
    others = [key for key in list(pool._page_of) if pool.find(key) != page]
    for key in others:
        pool.share(pool.find(key))
    pool.clear_kept()
    for key in others:
        pool.give_back(pool.find(key))


# What is held.


def test_admission_takes_no_pages():
    kv = paged()
    pages = admit(kv, IDS)
    assert kv.num_used_pages() == (0, 0)
    assert kv.num_missing(pages, 17) == (5, 5)


def test_a_sequence_holds_every_global_page_and_the_local_pages_of_its_chunk():
    kv = paged()
    for num_tokens in range(1, 60):
        pages = run(kv, IDS[:num_tokens], publish=False)
        in_chunk = num_tokens % 16
        assert kv.num_used_pages() == (-(-num_tokens // 4), -(-in_chunk // 4))
        assert pages.num_reserved == -(-num_tokens // 4) * 4
        kv.release(pages)


def test_a_step_over_a_chunk_boundary_holds_both_chunks_until_it_is_computed():
    kv = paged()
    pages = compute(kv, admit(kv, IDS), IDS[:10])
    kv.grow(pages, 30)
    assert kv.num_used_pages() == (10, 10)
    assert len(pages.local_table.slots(0, 40)) == 40
    kv.advance(pages, IDS, 30)
    assert kv.num_used_pages() == (10, 2)
    assert pages.local_table.first == 8


def test_scout_holds_48_kib_per_token_globally_and_at_most_1_208_gb_locally():
    page, layer_bytes = 64, 2 * 8 * 128 * 2
    global_bytes, local_bytes = 12 * layer_bytes * page, 36 * layer_bytes * page
    assert global_bytes == 49_152 * page
    kv = PagedKv(PagingPlan(page, 8192, True, 400, 300))
    ids = list(range(24_000))
    pages, most = admit(kv, ids), 0
    while pages.num_tokens < len(ids):
        num_tokens = min(512, len(ids) - pages.num_tokens)
        kv.grow(pages, num_tokens)
        most = max(most, kv.num_used_pages()[1] * local_bytes)
        kv.advance(pages, ids, num_tokens, publish=False)
        in_chunk = pages.num_tokens % 8192
        assert kv.num_used_pages() == (-(-pages.num_tokens // page), -(-in_chunk // page))
    assert most == 1_207_959_552
    assert kv.num_used_pages()[0] * global_bytes == 24_000 * 49_152


@pytest.mark.parametrize("short", ["num_global_pages", "num_local_pages"])
def test_a_growth_that_does_not_fit_one_pool_changes_neither(short):
    kv = paged(**{short: 2})
    pages = admit(kv, IDS)
    assert kv.can_grow(pages, 8)
    assert not kv.can_grow(pages, 9)
    with pytest.raises(OutOfPages, match="expected 3 global and 3 local pages"):
        kv.grow(pages, 9)
    kv.check()
    assert kv.num_used_pages() == (0, 0)
    kv.grow(pages, 8)


def test_release_frees_everything_and_may_be_repeated():
    kv = paged()
    pages = run(kv, IDS)
    for _ in range(2):
        kv.release(pages)
        kv.check()
        assert kv.num_used_pages() == (0, 0)
        assert (pages.num_tokens, pages.num_reserved, pages.global_table.pages()) == (0, 0, [])


def test_a_released_sequence_cannot_grow():
    kv = paged()
    pages = admit(kv, IDS)
    kv.release(pages)
    with pytest.raises(AssertionError, match="was released"):
        kv.grow(pages, 1)


def test_what_was_not_grown_cannot_be_computed():
    kv = paged()
    with pytest.raises(AssertionError, match="in pages for 0"):
        kv.advance(admit(kv, IDS), IDS, 1)


def test_a_page_must_divide_the_chunk():
    with pytest.raises(BadConfig, match="choose a page that divides the chunk"):
        PagingPlan(3, 16, True, 1, 1)


def test_a_model_has_some_kind_of_layer():
    with pytest.raises(BadConfig, match="found neither"):
        PagingPlan(4, None, False, 1, 1)


# What is consecutive.


def test_32_sequences_that_grow_in_turn_stay_in_one_piece_each():
    kv = PagedKv(PagingPlan(16, 512, True, 32 * 64, 32 * 40))
    ids = list(range(1000))
    running = [kv.admit([n, *ids[:36]], expect_tokens=1000, use_cached=False) for n in range(32)]
    for pages in running:
        kv.grow(pages, 37)
        kv.advance(pages, ids, 37, publish=False)
    for _ in range(900):
        for pages in running:
            kv.grow(pages, 1)
            kv.advance(pages, ids, 1, publish=False)
    kv.check()
    assert [pages.global_table.num_runs for pages in running] == [1] * 32
    assert [pages.local_table.num_runs for pages in running] == [1] * 32


def test_sequences_stay_in_few_pieces_when_the_pool_is_full_of_kept_pages():
    kv, number = paged(GLOBAL_ONLY, num_global_pages=2000), count()
    running: list[tuple[SequencePages, list[int]]] = []
    runs = []
    while len(runs) < 120:
        while len(running) < 8:
            ids = [next(number), *range(60 + 29 * (len(runs) % 7))]
            running.append((kv.admit(ids[:20], expect_tokens=len(ids)), ids))
            compute_quietly(kv, *running[-1], 20)
        for pages, ids in list(running):
            compute_quietly(kv, pages, ids, 1)
            if pages.num_tokens == len(ids):
                runs.append(pages.global_table.num_runs)
                running.remove((pages, ids))
                kv.release(pages)
    kv.check()
    assert kv.num_evicted > 1000
    assert sum(runs[60:]) / 60 < 3, "35 where pages are handed out one by one"


def compute_quietly(kv: PagedKv, pages: SequencePages, ids: list[int], num_tokens: int) -> None:
    kv.grow(pages, num_tokens)
    kv.advance(pages, ids, num_tokens)


# What is reused.


@pytest.mark.parametrize("plan", [PLAN, GLOBAL_ONLY])
@pytest.mark.parametrize("num_tokens", [1, 4, 5, 15, 16, 17, 20, 21, 32, 33, 39])
def test_an_identical_prompt_computes_its_last_block_only(plan, num_tokens):
    kv = paged(plan)
    cache(kv, IDS[:num_tokens])
    assert found(kv, IDS[:num_tokens]) == (num_tokens - 1) // 4 * 4


def test_nothing_is_reused_that_differs_before():
    kv = paged()
    cache(kv, IDS[:40])
    assert found(kv, [0, *IDS[1:40]]) == 0
    assert found(kv, [*IDS[:22], 0, *IDS[23:40]]) == 20


def test_a_running_sequence_shares_what_it_has_computed():
    kv = paged()
    first = run(kv, IDS[:20])
    second = admit(kv, IDS[:30])
    assert second.num_cached == 20
    assert second.global_table.pages() == first.global_table.pages()
    assert second.local_table.pages() == first.local_table.pages()
    assert kv.num_used_pages() == (5, 1)
    compute(kv, second, IDS[:30])
    assert second.global_table.pages()[:5] == first.global_table.pages()


def test_local_pages_of_earlier_chunks_are_not_needed_to_resume():
    kv = paged()
    cache(kv, IDS[:40])
    for block in range(8):
        drop(kv, True, block)
    assert found(kv, IDS[:40]) == 36


def test_a_missing_local_page_sends_the_sequence_back_to_it():
    kv = paged()
    cache(kv, IDS[:48])
    drop(kv, True, 10)
    assert found(kv, IDS[:48]) == 40
    drop(kv, True, 8)
    assert found(kv, IDS[:48]) == 32, "nothing local is needed at a chunk's beginning"


def test_a_missing_global_page_ends_the_prefix():
    kv = paged()
    cache(kv, IDS[:48])
    drop(kv, False, 5)
    assert found(kv, IDS[:48]) == 20
    drop(kv, False, 0)
    assert found(kv, IDS[:48]) == 0


def test_a_model_of_local_layers_needs_its_last_chunk_only():
    kv = paged(LOCAL_ONLY)
    assert found(kv, IDS[:40]) == 32, "no token from 32 on sees one before"
    cache(kv, IDS[:40])
    assert found(kv, IDS[:40]) == 36
    assert kv.global_pool.num_pages == 0


def test_the_cache_is_left_alone_on_request():
    kv = paged()
    cache(kv, IDS[:40])
    pages = kv.admit(IDS[:40], expect_tokens=40, use_cached=False)
    assert (pages.num_cached, pages.local_table.first) == (0, 0)
    compute(kv, pages, IDS[:40])
    kv.release(pages)
    assert kv.num_kept_pages() == (10, 10)


def test_unpublished_pages_are_not_found():
    kv = paged()
    kv.release(run(kv, IDS[:40], publish=False))
    assert (found(kv, IDS[:40]), kv.num_kept_pages()) == (0, (0, 0))


def test_a_preempted_sequence_finds_its_own_output_again():
    kv = paged()
    pages = compute(kv, admit(kv, IDS[:10]), IDS[:43])
    kv.release(pages)
    assert found(kv, IDS[:44]) == 40


def test_nothing_computed_before_the_cache_was_cleared_is_found_after():
    kv = paged()
    cache(kv, IDS[50:90])
    pages = compute(kv, admit(kv, IDS[:40]), IDS[:20])
    kv.clear_cache()
    kv.check()
    compute(kv, pages, IDS[:40])
    assert (found(kv, IDS[:40]), found(kv, IDS[50:90])) == (0, 0)
    kv.release(pages)
    assert kv.num_kept_pages() == (0, 0)
    cache(kv, IDS[:40])
    assert found(kv, IDS[:40]) == 36


def test_a_chain_hashed_before_gives_the_same_answer():
    kv = paged()
    cache(kv, IDS[:40])
    chain = BlockChain(4, IDS[:40])
    assert admit(kv, IDS[:40], chain=chain).num_cached == 36


def test_the_end_of_a_prefix_is_evicted_before_its_beginning():
    kv = paged(GLOBAL_ONLY, num_global_pages=7)
    cache(kv, IDS[:24])
    run(kv, IDS[60:68])
    assert kv.num_evicted == 1
    assert found(kv, IDS[:24]) == 20


# What is wanted before a start.


def test_a_sequence_wants_pages_for_all_of_it_and_one_chunk():
    kv = paged()
    assert kv.num_wanted(IDS[:10]) == (3, 3)
    assert kv.num_wanted(IDS[:50]) == (13, 4)
    assert paged(GLOBAL_ONLY).num_wanted(IDS[:50]) == (13, 0)
    assert paged(LOCAL_ONLY).num_wanted(IDS[:50]) == (0, 4)


def test_pages_that_another_sequence_holds_are_not_wanted_and_kept_ones_are():
    kv = paged()
    pages = run(kv, IDS[:10])
    assert kv.num_wanted(IDS[:14]) == (2, 2)
    assert kv.num_wanted(IDS[:14], use_cached=False) == (4, 4)
    kv.release(pages)
    assert kv.num_wanted(IDS[:14]) == (4, 4)


# What comes back after it was evicted.


def gap(kv: PagedKv, ids: list[int], away: set[Block]) -> Gap:
    return kv.gap(ids, BlockChain(4), away.__contains__)


def everything(ids: list[int]) -> set[Block]:
    """Return every block there may be of a prompt."""
    return {(is_local, key) for is_local in (False, True) for key in BlockChain(4, ids).keys}


@pytest.mark.parametrize(("plan", "num_missing"), [(PLAN, 9 + 1), (GLOBAL_ONLY, 9), (LOCAL_ONLY, 1)])
def test_what_is_away_is_found_once_it_is_back(plan, num_missing):
    kv = paged(plan)
    refill = kv.refill(gap(kv, IDS[:40], everything(IDS)))
    kv.check()
    assert len(refill.pages) == num_missing
    assert found(kv, IDS[:40]) == (32 if plan is LOCAL_ONLY else 0), "local layers need nothing at a chunk's boundary"
    kv.finish_refill(refill, set())
    kv.check()
    assert found(kv, IDS[:40]) == 36
    assert kv.num_used_pages() == (0, 0)


def test_only_what_the_cache_lacks_is_refilled_and_what_it_has_stays():
    kv = paged(GLOBAL_ONLY, num_global_pages=9)
    cache(kv, IDS[:17])
    wanted = gap(kv, IDS[:40], everything(IDS))
    assert (wanted.num_found, wanted.num_blocks) == (4, 5)
    kv.finish_refill(kv.refill(wanted), set())
    assert found(kv, IDS[:40]) == 36


@pytest.mark.parametrize("lost", [0, 3, 8])
def test_what_was_lost_on_the_way_is_not_found_nor_what_follows_it(lost):
    kv = paged(GLOBAL_ONLY)
    refill = kv.refill(gap(kv, IDS[:40], everything(IDS)))
    kv.finish_refill(refill, {(False, BlockChain(4, IDS).keys[lost])})
    kv.check()
    assert found(kv, IDS[:40]) == 4 * lost


def test_a_prefix_reaches_as_far_as_something_has_it():
    kv = paged()
    away = everything(IDS) - {(False, BlockChain(4, IDS).keys[6])}
    assert len(gap(kv, IDS[:40], away).keys) == 6
    away -= {(True, BlockChain(4, IDS).keys[5])}
    assert len(gap(kv, IDS[:40], away).keys) == 5
    assert gap(kv, IDS[:40], set()).missing == ()


@pytest.mark.parametrize("short", ["num_global_pages", "num_local_pages"])
def test_a_refill_that_does_not_fit_changes_nothing(short):
    kv = paged(**{short: 3})
    holder = admit(kv, IDS[50:60])
    kv.grow(holder, 10)
    with pytest.raises(OutOfPages):
        kv.refill(gap(kv, IDS[:32], everything(IDS)))
    kv.check()
    assert kv.num_used_pages() == (3, 3)


def test_what_is_refilled_is_coming_until_it_is_there_or_given_up():
    kv = paged()
    refill = kv.refill(gap(kv, IDS[:40], everything(IDS)))
    assert kv.is_coming(IDS[:40])
    kv.give_up_refill(refill)
    kv.give_up_refill(refill)
    kv.check()
    assert not kv.is_coming(IDS[:40])
    kv.finish_refill(refill, set())
    kv.check()
    assert (found(kv, IDS[:40]), kv.num_kept_pages()) == (0, (0, 0))


def test_a_refill_that_began_before_the_cache_was_cleared_is_not_used():
    kv = paged()
    refill = kv.refill(gap(kv, IDS[:40], everything(IDS)))
    kv.clear_cache()
    kv.finish_refill(refill, set())
    kv.check()
    assert found(kv, IDS[:40]) == 0


def test_evicted_pages_are_told_of_by_their_block():
    kv = paged(GLOBAL_ONLY, num_global_pages=9)
    evicted = []
    kv.on_evict = lambda block, page: evicted.append(block)
    cache(kv, IDS[:36])
    run(kv, IDS[40:49])
    assert evicted == [(False, key) for key in BlockChain(4, IDS[:36]).keys[:-4:-1]]


# What is worth waiting for.


def test_a_block_is_coming_until_it_is_computed():
    kv = paged()
    pages = admit(kv, IDS[:20])
    assert kv.is_coming(IDS[:20])
    assert not kv.is_coming([0, *IDS[:20]])
    compute(kv, pages, IDS[:12])
    assert kv.is_coming(IDS[:20])
    assert kv.is_coming(IDS[:20], chain=BlockChain(4, IDS[:20]))
    compute(kv, pages, IDS[:16])
    assert not kv.is_coming(IDS[:20]), "the last token's block is computed anyway"
    assert kv.is_coming(IDS[:21])
    compute(kv, pages, IDS[:20])
    assert not kv.is_coming(IDS[:21])


def test_a_block_that_two_compute_is_coming_until_both_gave_up():
    kv = paged()
    first, second = admit(kv, IDS[:20]), admit(kv, IDS[:20])
    kv.release(first)
    assert kv.is_coming(IDS[:20])
    kv.release(second)
    kv.check()
    assert not kv.is_coming(IDS[:20])


def test_what_was_computed_and_not_kept_is_not_coming():
    kv = paged()
    compute(kv, admit(kv, IDS[:20]), IDS[:16], publish=False)
    assert not kv.is_coming(IDS[:20])


def test_output_is_not_announced():
    kv = paged()
    compute(kv, admit(kv, IDS[:6]), IDS[:6])
    assert not kv.is_coming(IDS[:20])


def test_a_block_that_must_be_computed_by_oneself_is_not_coming():
    kv = paged()
    admit(kv, IDS[:4])
    assert not kv.is_coming(IDS[:4])


# Forks.


def test_a_fork_shares_full_pages_and_copies_the_partial_ones():
    kv = paged()
    pages = run(kv, IDS[:22])
    twin, copies = kv.fork(pages)
    kv.check()
    assert twin.global_table.pages()[:5] == pages.global_table.pages()[:5]
    assert twin.local_table.pages()[:1] == pages.local_table.pages()[:1]
    assert copies == [
        PageCopy(False, pages.global_table.page(5), twin.global_table.page(5)),
        PageCopy(True, pages.local_table.page(5), twin.local_table.page(5)),
    ]
    assert kv.num_used_pages() == (7, 3)


def test_a_fork_between_pages_copies_nothing():
    kv = paged()
    pages = run(kv, IDS[:24])
    twin, copies = kv.fork(pages)
    assert (copies, twin.num_tokens, twin.num_reserved, kv.num_used_pages()) == ([], 24, 24, (6, 2))


def test_a_fork_does_not_get_pages_that_are_not_written_yet():
    kv = paged()
    pages = run(kv, IDS[:24])
    kv.grow(pages, 20)
    twin, _ = kv.fork(pages)
    kv.check()
    assert (twin.num_reserved, twin.global_table.num_pages, twin.local_table.num_pages) == (24, 6, 6)


@pytest.mark.parametrize("short", ["num_global_pages", "num_local_pages"])
def test_a_fork_without_a_page_for_the_copy_changes_nothing(short):
    kv = paged(**{short: 6})
    pages = admit(kv, IDS[:22])
    kv.grow(pages, 22)
    kv.advance(pages, IDS, 10, publish=False)
    with pytest.raises(OutOfPages, match="found 0 of 6"):
        kv.fork(pages)
    kv.check()
    assert kv.num_sequences == 1


def test_forks_go_different_ways():
    kv = paged()
    pages = run(kv, IDS[:22])
    twin, _ = kv.fork(pages)
    compute(kv, pages, IDS[:40])
    compute(kv, twin, [*IDS[:22], *range(30)])
    kv.release(pages)
    kv.check()
    kv.release(twin)
    kv.check()
    assert kv.num_used_pages() == (0, 0)


def test_a_fork_in_the_middle_of_a_prompt_may_go_another_way():
    kv, other = paged(), [*IDS[:10], *range(20)]
    pages = compute(kv, admit(kv, IDS[:30]), IDS[:10])
    twin, _ = kv.fork(pages)
    compute(kv, twin, other)
    assert (found(kv, IDS[:30]), found(kv, other)) == (8, 28)


# What check finds.


def test_check_names_a_page_that_will_be_written_and_is_shared():
    kv = paged()
    pages = run(kv, IDS[:22])
    kv.global_pool.share(pages.global_table.page(5))
    with pytest.raises(AssertionError, match="is shared and will be written"):
        kv.check()


def test_check_names_a_page_with_a_holder_too_many():
    kv = paged()
    kv.global_pool.take(1)
    with pytest.raises(AssertionError, match="page 0 is in 0 tables, 1 holders"):
        kv.check()


def test_check_finds_announcements_nobody_made():
    kv = paged()
    kv._announced[b"nobody"] = 1
    with pytest.raises(AssertionError, match="announced"):
        kv.check()
