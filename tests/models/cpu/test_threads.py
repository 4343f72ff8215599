"""The kernels from several threads at once, and how many threads they use."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from models.cpu.tensors import linear, swiglu
from models.cpu.threads import kernel_threads, num_kernel_threads
from models.cpu.weight import Weight

NUM_CALLERS, NUM_CALLS = 8, 40


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("num_threads", [2, 7])
def test_calls_at_once_get_what_each_alone_gets(num_threads):
    """The pool has one user at a time; who finds it taken computes alone."""
    weight, expert = Weight(random(260, 96)), (Weight(random(128, 96, seed=1)), Weight(random(96, 64, seed=2)))
    inputs = [random(1 + 3 * caller, 96, seed=caller) for caller in range(NUM_CALLERS)]

    def compute(x_TI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return linear(weight, x_TI), swiglu([expert, expert], [1, len(x_TI) - 1], x_TI)

    with kernel_threads(1):
        expected = [compute(x_TI) for x_TI in inputs]
    together = Barrier(NUM_CALLERS)

    def call(caller: int) -> bool:
        together.wait()
        with kernel_threads(num_threads):
            return all(all(map(torch.equal, compute(inputs[caller]), expected[caller])) for _ in range(NUM_CALLS))

    with ThreadPoolExecutor(NUM_CALLERS) as pool:
        assert all(pool.map(call, range(NUM_CALLERS)))


@pytest.mark.usefixtures("kernels")
def test_the_number_of_threads_may_change_from_call_to_call():
    weight, x_TI = Weight(random(260, 96)), random(9, 96, seed=1)
    expected_TO = linear(weight, x_TI)
    for number in (2, 5, 1, 3, 200, 2):  # 200: more than the pool ever starts
        with kernel_threads(number):
            assert torch.equal(linear(weight, x_TI), expected_TO)


def test_as_many_threads_as_torch_may_use_unless_told_otherwise():
    assert num_kernel_threads() == torch.get_num_threads()
    with kernel_threads(5):
        assert num_kernel_threads() == 5
        with kernel_threads(2):
            assert num_kernel_threads() == 2
        assert num_kernel_threads() == 5
    assert num_kernel_threads() == torch.get_num_threads()


def test_the_number_is_the_calling_threads_own():
    with kernel_threads(5), ThreadPoolExecutor(1) as pool:
        assert pool.submit(num_kernel_threads).result() == torch.get_num_threads()


def test_an_error_gives_the_number_back():
    with pytest.raises(ZeroDivisionError), kernel_threads(5):
        _ = 1 // 0
    assert num_kernel_threads() == torch.get_num_threads()
