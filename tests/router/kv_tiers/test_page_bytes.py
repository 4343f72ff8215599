"""A page's content leaves the cache's tensors and comes back to any other page, bit by bit."""

from __future__ import annotations

import pytest
import torch

from tests.router.kv_tiers.content import PAGE, all_parts, tiny_cache

KINDS = {"both": {}, "global": {"nope_layers": (0, 1, 2, 3)}, "local": {"nope_layers": ()}}


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("kv_dtype", ["float32", "bfloat16", "int8", "fp8"])
def test_pages_come_back_to_other_places_bit_by_bit(kv_dtype, changes):
    layout, storage, page_bytes = tiny_cache(kv_dtype, **changes)
    for is_local, layers in ((False, layout.global_layers), (True, layout.local_layers)):
        if not layers:
            continue
        before = [part.clone() for part in storage.parts(is_local)]
        rows = page_bytes.read(is_local, [3, 0, 7])
        assert rows.shape == (3, len(layers) * PAGE * layout.bytes_per_token_layer)
        page_bytes.write(is_local, [1, 10, 2], rows)
        for part, old in zip(storage.parts(is_local), before, strict=True):
            pages, old_pages = part.unflatten(0, (-1, PAGE)), old.unflatten(0, (-1, PAGE)).clone()
            old_pages[[1, 10, 2]] = old_pages[[3, 0, 7]]
            assert torch.equal(pages.view(torch.uint8), old_pages.view(torch.uint8))


def test_parts_that_are_no_whole_words_come_back_too():
    _, storage, page_bytes = tiny_cache("int8", num_kv_heads=1, num_heads=1, head_size=2, attention_chunk=3)
    assert page_bytes.word == torch.uint8
    expected = [part[:1].clone() for part in storage.parts(False)]
    rows = page_bytes.read(False, [0])
    for part in storage.parts(False):
        part.zero_()
    page_bytes.write(False, [0], rows)
    for part, before in zip(storage.parts(False), expected, strict=True):
        assert torch.equal(part[:1].view(torch.uint8), before.view(torch.uint8))


def test_writing_pages_of_one_kind_leaves_the_other_alone():
    _, storage, page_bytes = tiny_cache()
    before = [part.view(torch.uint8).clone() for part in storage.parts(False)]
    page_bytes.write(True, [0], page_bytes.read(True, [5]))
    assert all(torch.equal(part.view(torch.uint8), old) for part, old in zip(storage.parts(False), before, strict=True))


@pytest.mark.parametrize(
    ("nope_layers", "slots"), [((3,), (1, 3)), ((1, 3), (1, 1)), ((), (0, 1)), ((0, 1, 2, 3), (1, 0))]
)
def test_pages_of_both_kinds_are_whole_slots(nope_layers, slots):
    layout, storage, page_bytes = tiny_cache(nope_layers=nope_layers)
    assert (page_bytes.slots_per_page[False], page_bytes.slots_per_page[True]) == slots
    total = sum(part.nbytes for part in all_parts(storage))
    assert sum(page_bytes.page_bytes(kind) for kind in (False, True)) * 12 == total
    assert layout.pages_bytes(1, 0) == page_bytes.page_bytes(False)
