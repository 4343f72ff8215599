"""Products and experts on the CPU's kernels, against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.cpu.tensors import linear, swiglu
from models.cpu.threads import kernel_threads
from models.cpu.weight import Weight
from models.linear.quantization import quantize_int8

pytestmark = pytest.mark.usefixtures("kernels")

NUM_TOKENS = (0, 1, 2, 3, 4, 5, 6, 7, 12, 13, 33, 255, 256, 257, 600)
HEIGHTS = (4, 12, 20, 24, 36, 64, 1540)
BF16_ROUNDING, FP32_ROUNDING = 2.0**-8, 2.0**-24
"""The most that rounding changes a number by, relative to it."""
BROKEN = (torch.nan, torch.inf, -torch.inf)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def quantized(weight_OI: Tensor) -> Weight:
    rounded = quantize_int8(weight_OI)
    return Weight(rounded.codes_OI, rounded.scale_O)


@pytest.fixture(params=["bfloat16", "int8"])
def make(request: pytest.FixtureRequest) -> Callable[[Tensor], Weight]:
    """What makes a weight, of each kind that this machine knows."""
    if request.param == "bfloat16":
        return Weight
    request.getfixturevalue("int8_kernels")
    return quantized


def rounded_rows(x_TI: Tensor) -> Tensor:
    """Round each row to 255 even steps, as the kernels do: times the step's inverse."""
    step_T1 = x_TI.float().abs().amax(1, keepdim=True) / 127
    return ((x_TI.float() * (1 / step_T1)).round().double() * step_T1).nan_to_num()


def assert_within(found: Tensor, expected: Tensor, bound: Tensor) -> None:
    assert found.dtype == torch.bfloat16
    assert found.shape == expected.shape
    error = (found.double() - expected).abs()
    assert (error <= bound).all(), f"{(error / bound).max():.3g} times what rounding explains"


@pytest.mark.parametrize("height", HEIGHTS)
@pytest.mark.parametrize("width", [32, 64, 96, 768])
def test_linear_in_bfloat16_is_as_near_as_its_roundings(height, width):
    """At most one for each addition in a lane and for the six of the lanes, and that of the result."""
    weight_OI = random(height, width)
    for num_tokens in NUM_TOKENS:
        x_TI = random(num_tokens, width, seed=1)
        expected_TO = x_TI.double() @ weight_OI.double().t()
        size_TO = x_TI.double().abs() @ weight_OI.double().abs().t()
        bound_TO = (width / 16 + 6) * FP32_ROUNDING * size_TO + BF16_ROUNDING * expected_TO.abs()
        assert_within(linear(Weight(weight_OI), x_TI), expected_TO, bound_TO)


@pytest.mark.usefixtures("int8_kernels")
@pytest.mark.parametrize("height", HEIGHTS)
@pytest.mark.parametrize("width", [64, 768])
def test_linear_in_int8_adds_up_rounded_rows_exactly(height, width):
    """Sums are integers: what is left are four roundings to float32 and that of the result."""
    weight_OI = random(height, width)
    exact_OI = quantize_int8(weight_OI).dequantized().double()
    for num_tokens in NUM_TOKENS:
        x_TI = random(num_tokens, width, seed=1)
        expected_TO = rounded_rows(x_TI) @ exact_OI.t()
        found_TO = linear(quantized(weight_OI), x_TI)
        slack_TO = 4 * FP32_ROUNDING * (rounded_rows(x_TI).abs() @ exact_OI.abs().t())
        assert_within(found_TO, expected_TO, (BF16_ROUNDING + 4 * FP32_ROUNDING) * expected_TO.abs() + slack_TO)


@pytest.mark.usefixtures("int8_kernels")
def test_int8_sums_of_the_widest_rows_do_not_overflow():
    width = 53_248  # the widest of any published Llama
    weight = quantized(torch.ones(4, width).bfloat16())
    found_TO = linear(weight, torch.tensor([[1.0], [-1.0]]).bfloat16().expand(2, width).contiguous())
    assert found_TO.tolist() == [[width] * 4, [-width] * 4]


@pytest.mark.usefixtures("int8_kernels")
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e30])
def test_int8_rows_may_be_of_any_size(size):
    x_TI = (random(2, 64) * size).bfloat16()
    weight_OI = random(4, 64)
    expected_TO = rounded_rows(x_TI) @ quantize_int8(weight_OI).dequantized().double().t()
    assert_within(linear(quantized(weight_OI), x_TI), expected_TO, 2 * BF16_ROUNDING * expected_TO.abs())


def test_a_token_gets_the_same_bits_alone_and_beside_others(make):
    weight, x_TI = make(random(36, 768)), random(300, 768, seed=1)
    together_TO = linear(weight, x_TI)
    for start, stop in ((0, 1), (7, 9), (100, 113), (255, 257), (299, 300)):
        assert torch.equal(linear(weight, x_TI[start:stop]), together_TO[start:stop])


@pytest.mark.parametrize("num_threads", [2, 5])
def test_several_threads_give_the_same_bits_as_one(make, num_threads):
    """Inputs differ from call to call: memory may be that of the last one's results, and right by chance."""
    weight, expert = make(random(1540, 768)), (make(random(128, 768, seed=2)), make(random(768, 64, seed=3)))
    for seed in range(5):
        x_TI = random(500, 768, seed=seed)
        with kernel_threads(1):
            alone = linear(weight, x_TI), swiglu([expert, expert], [9, 491], x_TI)
        with kernel_threads(num_threads):
            shared = linear(weight, x_TI), swiglu([expert, expert], [9, 491], x_TI)
        assert all(map(torch.equal, alone, shared))


@pytest.mark.parametrize("num_tokens", [1, 6, 300])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_weight_shows_in_its_output_and_nowhere_else(broken, num_tokens):
    weight_OI = random(36, 96)
    weight_OI[17, 50] = broken
    is_finite_TO = linear(Weight(weight_OI), random(num_tokens, 96, seed=1)).isfinite()
    assert not is_finite_TO[:, 17].any()
    assert is_finite_TO[:, torch.arange(36) != 17].all()


@pytest.mark.parametrize("num_tokens", [1, 6, 300])
@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_token_shows_and_leaves_others_alone(broken, num_tokens):
    x_TI = random(num_tokens, 96, seed=1)
    x_TI[-1, 50] = broken
    for found_TO in (linear(Weight(random(36, 96)), x_TI), swiglu([random_expert(96, 32)], [num_tokens], x_TI)):
        assert not found_TO[-1].isfinite().any()
        assert found_TO[:-1].isfinite().all()


@pytest.mark.usefixtures("int8_kernels")
def test_a_broken_token_shows_in_int8():
    x_TI = random(3, 64, seed=1)
    x_TI[1, 5] = torch.nan
    found_TO = linear(quantized(random(4, 64)), x_TI)
    assert found_TO[1].isnan().all()
    assert found_TO[::2].isfinite().all()


def random_expert(width: int, inner: int, make=Weight, seed: int = 0) -> tuple[Weight, Weight]:
    return tuple(make(weight_OI) for weight_OI in random_matrices(width, inner, seed))


def random_matrices(width: int, inner: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return gate and up, and down, scaled so that numbers stay about as large as they were."""
    gate_up, down = random(2 * inner, width, seed=2 * seed), random(width, inner, seed=2 * seed + 1)
    return gate_up * width**-0.5, down * inner**-0.5


def swiglu_exactly(experts: list[tuple[Tensor, Tensor]], counts: list[int], x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return outputs in float64, and what they can be off by: rounded are the inner numbers, and they are."""
    outputs, bounds = [], []
    for (gate_up, down), x_nD in zip(experts, x_ND.double().split(counts), strict=True):
        gate_nF, up_nF = (x_nD @ gate_up.double().t()).chunk(2, dim=1)
        mixed_nF = F.silu(gate_nF) * up_nF
        outputs.append(mixed_nF @ down.double().t())
        # Rounded sums of float32 besides, relative to all that was added up: gate and up are of size 1.
        slack_nF = mixed_nF.abs() * BF16_ROUNDING + x_nD.shape[1] * FP32_ROUNDING
        bounds.append(slack_nF @ down.double().abs().t() + outputs[-1].abs() * BF16_ROUNDING)
    return torch.cat(outputs), torch.cat(bounds)


@pytest.mark.parametrize("counts", [[1], [0, 3, 0, 70, 1], [5, 0, 300, 0, 2], [0, 0], [600], [1] * 16])
@pytest.mark.parametrize(("width", "inner"), [(32, 32), (100 * 32, 64), (768, 160)])
def test_swiglu_is_as_near_as_its_roundings(counts, width, inner):
    experts = [random_matrices(width, inner, seed) for seed in range(len(counts))]
    x_ND = random(sum(counts), width, seed=99)
    found_ND = swiglu([tuple(map(Weight, expert)) for expert in experts], counts, x_ND)
    assert_within(found_ND, *swiglu_exactly(experts, counts, x_ND))


@pytest.mark.usefixtures("int8_kernels")
@pytest.mark.parametrize("counts", [[1], [0, 3, 0, 70, 1], [5, 0, 300, 0, 2], [0, 0]])
def test_swiglu_in_int8_adds_up_rounded_rows_exactly(counts):
    matrices = [random_matrices(192, 128, seed) for seed in range(len(counts))]
    x_ND = random(sum(counts), 192, seed=99)
    expected_ND = []
    for expert, x_nD in zip(matrices, x_ND.split(counts), strict=True):
        gate_up, down = (quantize_int8(weight_OI).dequantized().double().t() for weight_OI in expert)
        gate_nF, up_nF = (rounded_rows(x_nD) @ gate_up).chunk(2, dim=1)
        expected_ND.append(rounded_rows((F.silu(gate_nF) * up_nF).bfloat16()) @ down)
    expected_ND = torch.cat(expected_ND)
    found_ND = swiglu([tuple(map(quantized, expert)) for expert in matrices], counts, x_ND)
    assert found_ND.shape == expected_ND.shape
    # By norm: an inner number at an edge may be rounded to the next step, which is a percent of the greatest of them.
    error_N = (found_ND.double() - expected_ND).norm(dim=1)
    assert (error_N <= BF16_ROUNDING * expected_ND.norm(dim=1)).all()


def test_an_experts_tokens_get_the_same_bits_whoever_is_beside_them():
    experts = [random_expert(96, 64, seed=seed) for seed in range(3)]
    x_ND = random(310, 96, seed=9)
    together_ND = swiglu(experts, [300, 3, 7], x_ND)
    assert torch.equal(swiglu(experts[1:2], [3], x_ND[300:303]), together_ND[300:303])
    assert torch.equal(swiglu(experts[:1], [1], x_ND[299:300]), together_ND[299:300])


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize(("matrix", "row"), [(0, 5), (0, 64 + 5), (1, 5)], ids=["gate", "up", "down"])
def test_a_broken_expert_shows_in_its_own_tokens_only(matrix, row, broken):
    matrices = [random_matrices(96, 64, seed) for seed in range(2)]
    matrices[1][matrix][row, 3] = broken
    found_ND = swiglu([tuple(map(Weight, each)) for each in matrices], [2, 3], random(5, 96, seed=9))
    assert found_ND[:2].isfinite().all()
    assert not found_ND[2:].isfinite().all(dim=1).any()


@pytest.mark.parametrize("size", [1.0, 87.0, 88.0, 1e4, 1e30])
def test_gates_of_any_size_do_not_overflow(size):
    """Each gate is the size or its negative; up and down are one."""
    gate_up_2FD, down_DF = torch.zeros(64, 32).bfloat16(), torch.eye(32).bfloat16()
    gate_up_2FD[:16, 0], gate_up_2FD[16:32, 0], gate_up_2FD[32:, 1] = 1, -1, 1
    x_ND = torch.zeros(1, 32).bfloat16()
    x_ND[0, :2] = torch.tensor([size, 1.0])
    found_D = swiglu([(Weight(gate_up_2FD), Weight(down_DF))], [1], x_ND)[0]
    gates_D = torch.tensor([x_ND[0, 0]] * 16 + [-x_ND[0, 0]] * 16).double()
    torch.testing.assert_close(found_D.double(), F.silu(gates_D), atol=1e-35, rtol=BF16_ROUNDING)


def test_inputs_are_only_read():
    weight_OI, x_TI = random(36, 64), random(7, 64, seed=1)
    before = weight_OI.clone(), x_TI.clone()
    linear(Weight(weight_OI), x_TI)
    assert torch.equal(weight_OI, before[0])
    assert torch.equal(x_TI, before[1])
