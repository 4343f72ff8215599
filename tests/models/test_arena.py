"""Memory for many tensors in one piece, and reading into it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from models.arena import Arena
from models.checkpoint import open_checkpoint
from models.cpu.threads import compute_alone
from models.linear import pack_linear
from tests.models.checkpoint_files import hf_tensors, with_separate_experts, write_hf


def test_tensors_lie_side_by_side_until_the_block_is_full():
    arena = Arena(200)
    first, second, third = (arena.empty((4, 2), torch.float32) for _ in range(3))
    assert second.data_ptr() - first.data_ptr() == 64
    assert third.data_ptr() - second.data_ptr() == 64
    outside = arena.empty((4, 2), torch.float32)
    assert not first.data_ptr() <= outside.data_ptr() < first.data_ptr() + 200
    for value, tensor in enumerate((first, second, third, outside)):
        tensor.fill_(value)
    assert [float(tensor.sum()) for tensor in (first, second, third, outside)] == [0, 8, 16, 24]


def test_a_cleared_block_grows_to_what_was_asked_of_it():
    arena = Arena()
    arena.empty((100,), torch.float32)
    arena.clear()
    first = arena.empty((100,), torch.float32)
    arena.clear()
    assert arena.empty((100,), torch.float32).data_ptr() == first.data_ptr()


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("are_separate", [False, True])
def test_reading_into_memory_gives_the_same_values(tmp_path, are_separate, dtype):
    tensors = hf_tensors()
    checkpoint = open_checkpoint(write_hf(tmp_path, with_separate_experts(tensors) if are_separate else tensors))
    memory = Arena()
    for name in checkpoint.names * 2:
        found, expected = checkpoint.read(name, dtype, memory), checkpoint.read(name, dtype)
        assert expected.is_contiguous()
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)


def test_separate_experts_are_read_as_the_rows_that_products_want(tmp_path):
    checkpoint = open_checkpoint(write_hf(tmp_path, with_separate_experts(hf_tensors())))
    for dtype in (None, torch.bfloat16):
        assert checkpoint.read("layers.1.experts.2.gate_up", dtype, Arena()).T.is_contiguous()


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_a_packed_weight_may_be_overwritten(dtype, quantize, is_transposed):
    stored = torch.randn((64, 96) if is_transposed else (96, 64), dtype=torch.float32).to(dtype)
    linear = pack_linear(stored.t() if is_transposed else stored, quantize)
    x_TI = torch.randn(3, 64).to(dtype)
    before = linear(x_TI)
    stored.zero_()
    assert torch.equal(linear(x_TI), before)


def test_a_thread_that_computes_alone_starts_no_others():
    def count_threads() -> int:
        compute_alone()
        before = len(os.listdir("/proc/self/task"))
        torch.ones(2**22).mul_(2)
        return len(os.listdir("/proc/self/task")) - before

    num_threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(count_threads).result() == 0
            assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(num_threads)
