"""What is written at a slot is read there, in every dtype."""

from __future__ import annotations

import pytest
import torch

from router.kv_cache.layout import CacheLayout
from router.kv_cache.storage import KvStorage
from router.paging.paged_kv import PagingPlan
from tests.tiny import TINY

CPU = torch.device("cpu")
ROWS_TGC = torch.randn(6, TINY.num_kv_heads, TINY.head_size, generator=torch.Generator().manual_seed(0))
SLOTS_T = torch.tensor([9, 3, 4, 5, 30, 31])
# Half a step of the last place, relative to the largest number of a row.
TOLERANCE = {"float32": 0.0, "bfloat16": 2**-8, "float16": 2**-11, "int8": 0.5 / 127, "fp8": 2**-4}


def storage(kv_dtype="float32", dtype=torch.float32):
    layout = CacheLayout(TINY, kv_dtype, 4)
    return KvStorage(layout, PagingPlan(4, TINY.attention_chunk, True, 8, 8), dtype, CPU)


@pytest.mark.parametrize("kv_dtype", TOLERANCE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_back_as_exactly_as_they_are_stored(kv_dtype, dtype):
    cache = storage(kv_dtype, dtype)
    rows_TGC = ROWS_TGC.to(dtype)
    cache.write(0, SLOTS_T, rows_TGC, -rows_TGC)
    keys_GSC, values_GSC = cache.read(0, [(9, 1), (3, 3), (30, 2)])
    assert keys_GSC.dtype == dtype
    assert torch.equal(values_GSC, -keys_GSC)
    largest = rows_TGC.abs().amax(dim=-1, keepdim=True).float()
    error = (keys_GSC.transpose(0, 1).float() - rows_TGC.float()).abs() / largest
    assert error.max() <= TOLERANCE[kv_dtype] + (2**-8 if dtype == torch.bfloat16 else 1e-7)


def test_consecutive_slots_are_read_without_a_copy():
    cache = storage()
    cache.write(3, SLOTS_T, ROWS_TGC, ROWS_TGC)
    keys_GSC, _ = cache.read(3, [(3, 3)])
    cache.write(3, torch.tensor([4]), 2 * ROWS_TGC[:1], ROWS_TGC[:1])
    assert torch.equal(keys_GSC[:, 1], 2 * ROWS_TGC[0])


def test_layers_and_kinds_do_not_share_slots():
    cache = storage()
    for layer in range(TINY.num_layers):
        cache.write(layer, SLOTS_T, ROWS_TGC + layer, ROWS_TGC - layer)
    for layer in range(TINY.num_layers):
        keys_GSC, values_GSC = cache.read(layer, [(30, 2)])
        assert torch.equal(keys_GSC.transpose(0, 1), ROWS_TGC[4:] + layer)
        assert torch.equal(values_GSC.transpose(0, 1), ROWS_TGC[4:] - layer)


def test_a_row_of_zeros_stays_zero_in_int8():
    cache = storage("int8")
    cache.write(0, SLOTS_T, 0 * ROWS_TGC, 0 * ROWS_TGC)
    assert not cache.read(0, [(30, 2)])[0].any()


@pytest.mark.parametrize("is_local", [True, False])
def test_a_copied_page_has_the_same_content_in_every_layer_of_its_kind(is_local):
    cache = storage("int8")
    layers = [layer for layer in range(TINY.num_layers) if TINY.is_local(layer) == is_local]
    for layer in layers:
        cache.write(layer, torch.arange(4), ROWS_TGC[:4] + layer, ROWS_TGC[:4])
    cache.copy_page(is_local, 0, 5)
    for layer in layers:
        for source, target in zip(cache.read(layer, [(0, 4)]), cache.read(layer, [(20, 4)]), strict=True):
            assert torch.equal(source, target)
