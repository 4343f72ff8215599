"""Every kernel against the reference."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experts.kernels import choose
from experts.kernels.reference import ReferenceKernel
from experts.kernels.torch_cpu import TorchCpuKernel

CPU = torch.device("cpu")
D, F = 32, 24
LARGE = 2800  # an F whose experts are packed in fp32 as well


def random_experts(num_experts: int, dtype: torch.dtype, F: int = F) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(num_experts)
    scale = D**-0.5
    return [
        (
            (torch.randn(D, 2 * F, generator=generator) * scale).to(dtype),
            (torch.randn(F, D, generator=generator) * F**-0.5).to(dtype),
        )
        for _ in range(num_experts)
    ]


def run(kernel, experts, token_counts, hidden_ND):
    return kernel.run([kernel.pack(*expert) for expert in experts], token_counts, hidden_ND)


@pytest.mark.parametrize("width", [F, LARGE])
@given(token_counts=st.lists(st.integers(0, 40), min_size=1, max_size=8), seed=st.integers(0, 2**31))
def test_chosen_kernel_equals_reference_for_any_counts(width, token_counts, seed):
    experts = random_experts(len(token_counts), torch.float32, width)
    hidden_ND = torch.randn(sum(token_counts), D, generator=torch.Generator().manual_seed(seed))
    expected_ND = run(ReferenceKernel(), experts, token_counts, hidden_ND)
    found_ND = run(choose(CPU), experts, token_counts, hidden_ND)
    assert found_ND.shape == expected_ND.shape
    torch.testing.assert_close(found_ND, expected_ND, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("token_counts", [[1], [16], [256], [0, 3, 0, 70, 1]])
def test_chosen_kernel_keeps_dtype_and_precision(dtype, token_counts):
    experts = random_experts(len(token_counts), dtype)
    hidden_ND = torch.randn(sum(token_counts), D, generator=torch.Generator().manual_seed(1)).to(dtype)
    exact = [(gate_up.double(), down.double()) for gate_up, down in experts]
    expected_ND = run(ReferenceKernel(), exact, token_counts, hidden_ND.double())
    found_ND = run(choose(CPU), experts, token_counts, hidden_ND)
    assert found_ND.dtype == dtype
    # Two roundings to the dtype, of values up to 4.
    tolerance = 16 * torch.finfo(dtype).eps
    torch.testing.assert_close(found_ND.double(), expected_ND, atol=tolerance, rtol=tolerance)


def test_reference_computes_down_of_silu_gate_times_up():
    gate_up_D2F = torch.tensor([[2.0, 3.0]])
    down_FD = torch.tensor([[5.0]])
    found_ND = run(ReferenceKernel(), [(gate_up_D2F, down_FD)], [1], torch.tensor([[1.0]]))
    assert found_ND.item() == pytest.approx(2 / (1 + 2.718281828459045**-2) * 3 * 5)


@pytest.mark.parametrize("kernel", [ReferenceKernel(), TorchCpuKernel()])
def test_no_tokens_give_no_rows(kernel):
    found_ND = run(kernel, random_experts(2, torch.float32), [0, 0], torch.empty(0, D))
    assert found_ND.shape == (0, D)


@pytest.mark.parametrize("kernel", [ReferenceKernel(), TorchCpuKernel()])
def test_input_is_only_read(kernel):
    hidden_ND = torch.randn(3, D)
    before_ND = hidden_ND.clone()
    run(kernel, random_experts(1, torch.float32), [3], hidden_ND)
    assert torch.equal(hidden_ND, before_ND)


def test_kernel_is_chosen_by_device():
    assert isinstance(choose(CPU), TorchCpuKernel)
    assert isinstance(choose(torch.device("meta")), ReferenceKernel)


def test_packed_kernel_keeps_to_torchs_threads_in_a_fresh_thread():
    expert = TorchCpuKernel().pack(*random_experts(1, torch.float32, LARGE)[0])
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def threads_before_and_after() -> tuple[int, int]:
        before = len(os.listdir("/proc/self/task"))
        TorchCpuKernel().run([expert], [256], torch.ones(256, D))
        return before, len(os.listdir("/proc/self/task"))

    try:
        with ThreadPoolExecutor(1) as pool:
            before, after = pool.submit(threads_before_and_after).result()
    finally:
        torch.set_num_threads(num_threads)
    assert before == after
