"""A GPU's kernels against products in double precision: on a GPU, or in Triton's interpreter where there is none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from experts.kernels.triton_gpu import TritonKernel
from experts.reader import ExpertReader
from models.arena import Arena
from models.gpu.linear import GpuLinear
from models.gpu.product import Launch
from models.gpu.swiglu import Block, plan_swiglu, swiglu
from models.gpu.tiles import tile_table
from models.gpu.weight import GROUP, GpuWeight, plain, round_fp8, round_int4, round_int8
from models.linear.quantization import Fp8Weight, quantize_int4, quantize_int8, symmetric_int4
from models.llama4.mlp import Mlp
from tests.models.gpu.live_bytes import Handed
from tests.tiny import TINY

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUND = {"plain": plain, "int8": round_int8, "fp8": round_fp8, "int4": round_int4}
FORMS = list(ROUND)
D, F = 2 * GROUP, GROUP


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * shape[-1] ** -0.5
    return values.to(dtype).to(DEVICE)


def random_block(form: str, width: int = D, inner: int = F, seed: int = 0) -> Block:
    return Block(ROUND[form](random(2 * inner, width, seed=seed)), ROUND[form](random(width, inner, seed=seed + 1)))


def exact(weight: GpuWeight, x_TI: torch.Tensor) -> torch.Tensor:
    return x_TI.double() @ weight.dequantized().double().t()


def exact_swiglu(block: Block, x_TD: torch.Tensor) -> torch.Tensor:
    gate_TF, up_TF = exact(block.gate_up, x_TD).chunk(2, dim=1)
    return exact(block.down, torch.nn.functional.silu(gate_TF) * up_TF)


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


def exact_of_all(blocks: list[Block], token_counts: list[int], x_ND: torch.Tensor) -> torch.Tensor:
    parts = zip(blocks, x_ND.split(token_counts), strict=True)
    return torch.cat([exact_swiglu(block, part) for block, part in parts])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("token_counts", [[1], [3, 0, 18], [0, 70, 1]])
def test_blocks_of_every_form_equal_double_precision(form, token_counts):
    blocks = [random_block(form, seed=10 * number) for number in range(len(token_counts))]
    x_ND = random(sum(token_counts), D, seed=99) * D**0.5
    most = max(token_counts)
    small = Launch(tokens=16, outputs=32, stages=2)
    wide = Launch(tokens=64, outputs=64, inputs=64, stages=2)
    for gate_up_launch, down_launch in ((small, small), (wide, small) if most > 16 else (small, wide)):
        found_ND = swiglu(x_ND, plan_swiglu(blocks, token_counts, gate_up_launch, down_launch))
        assert found_ND.dtype == torch.bfloat16
        assert relative_error(found_ND, exact_of_all(blocks, token_counts, x_ND)) < 1e-2


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("width", "inner"), [(200, 72), (GROUP, 24), (40, 3 * GROUP)])
def test_shapes_that_fill_no_tile_are_computed_to_their_edges(form, width, inner):
    block = random_block(form, width, inner, seed=3)
    x_ND = random(5, width, seed=4) * width**0.5
    launch = Launch(tokens=16, outputs=64, inputs=64, stages=2)
    found_ND = swiglu(x_ND, plan_swiglu([block], [5], launch, launch))
    assert relative_error(found_ND, exact_swiglu(block, x_ND)) < 1e-2


@pytest.mark.parametrize("quantize", [None, "int8", "fp8", "int4"])
def test_the_kernel_runs_what_it_packs(quantize):
    kernel = TritonKernel(DEVICE, quantize)
    weights = [(random(D, 2 * F, seed=seed), random(F, D, seed=seed + 1)) for seed in (1, 5)]
    experts = [kernel.pack(*each) for each in weights]
    x_ND = random(6, D, seed=7) * D**0.5
    blocks = [Block(expert.gate_up.weight, expert.down.weight) for expert in experts]
    found_ND = kernel.run(experts, [2, 4], x_ND)
    assert relative_error(found_ND, exact_of_all(blocks, [2, 4], x_ND)) < 1e-2
    num_bytes = sum(expert.num_bytes for expert in experts)
    # Scales of one output each are few, but not among outputs as few as these.
    assert num_bytes / (6 * D * F) == pytest.approx(kernel.bytes_per_weight(torch.bfloat16), rel=0.05)
    assert kernel.run(experts, [0, 0], x_ND[:0]).shape == (0, D)


def test_codes_that_fit_are_kept_and_others_become_numbers():
    kernel = TritonKernel(DEVICE)
    gate_up_OI, down_OI = random(2 * F, D).cpu(), random(D, F).cpu()
    codes = torch.randint(0, 16, (2 * F, D), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    released = symmetric_int4(codes, torch.rand(2 * F, D // GROUP).bfloat16())
    down_codes = torch.randint(0, 16, (D, F), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    released_down = symmetric_int4(down_codes, torch.rand(D, F // GROUP).bfloat16())
    of_cpu, of_cpu_down = quantize_int4(gate_up_OI.float()), quantize_int4(down_OI.float())
    int8s = quantize_int8(gate_up_OI), quantize_int8(down_OI)
    fp8s = [Fp8Weight(each.to(torch.float8_e4m3fn), torch.rand(each.shape[0])) for each in (gate_up_OI, down_OI)]
    pairs = ((released, released_down), "int4"), (int8s, "int8"), (fp8s, "fp8"), ((of_cpu, of_cpu_down), "plain")
    for pair, form in pairs:
        mlp = kernel.pack_rounded(*pair, torch.bfloat16, Arena())
        for linear, rounded in zip((mlp.gate_up, mlp.down), pair, strict=True):
            assert linear.weight.form == form
            found = linear.weight.dequantized().float().cpu()
            torch.testing.assert_close(found, rounded.dequantized(), rtol=2**-8, atol=1e-6)


class CountedExperts:
    """A source of random experts that counts how many bytes of their matrices live at once."""

    config = replace(TINY, hidden_size=D, expert_width=F)
    bytes_read = 0

    def __init__(self):
        self.handed = Handed()

    def num_bytes(self, name):
        return 1

    def read(self, name, dtype=None, memory=None):
        return self.handed.out(random(D, 2 * F) if name.endswith("gate_up") else random(F, D))


@pytest.mark.parametrize("quantize", ["int8", "fp8", "int4"])
def test_experts_are_rounded_one_by_one_as_they_are_read(quantize):
    source = CountedExperts()
    reader = ExpertReader(source, TritonKernel(DEVICE, quantize), torch.bfloat16, DEVICE)
    held = dict(reader.read(range(4), None, num_threads=1))
    assert all(mlp.gate_up.weight.form == quantize for by_layer in held.values() for mlp in by_layer.values())
    assert source.handed.most == 2 * 3 * D * F


def test_experts_of_several_forms_are_run_beside_each_other():
    kernel, rounding = TritonKernel(DEVICE), TritonKernel(DEVICE, "int4")
    weights = [(random(D, 2 * F, seed=seed), random(F, D, seed=seed + 1)) for seed in (1, 5)]
    experts = [kernel.pack(*weights[0]), rounding.pack(*weights[1])]
    blocks = [Block(expert.gate_up.weight, expert.down.weight) for expert in experts]
    x_ND = random(6, D, seed=7) * D**0.5
    found_ND = kernel.run(experts, [2, 4], x_ND)
    assert relative_error(found_ND, exact_of_all(blocks, [2, 4], x_ND)) < 1e-2


@pytest.mark.parametrize("form", FORMS)
def test_a_single_weight_is_multiplied_too(form):
    linear = GpuLinear(ROUND[form](random(72, D)))
    for num_tokens in (0, 1, 20, 20):
        x_TI = random(num_tokens, D, seed=num_tokens) * D**0.5
        found_TO = linear(x_TI)
        assert found_TO.shape == (num_tokens, 72)
        if num_tokens:
            assert relative_error(found_TO, exact(linear.weight, x_TI)) < 1e-2


def test_a_tile_says_where_its_weight_and_its_tokens_are():
    first, second = plain(random(4, 8)), round_fp8(random(4, 8))
    table = tile_table([first, second, first], [5, 0, 9], most_tokens=4).tolist()
    address = first.values.data_ptr()
    assert table == [
        [address, 0, 0, 4],
        [address, 0, 4, 1],
        [address, 0, 5, 4],
        [address, 0, 9, 4],
        [address, 0, 13, 1],
    ]
    assert tile_table([second], [1], 16).tolist() == [[second.values.data_ptr(), second.scale.data_ptr(), 0, 1]]


@pytest.mark.parametrize("num_tokens", [0, 3])
def test_an_mlp_of_two_weights_on_a_gpu_is_one_block(num_tokens):
    block = random_block("int4")
    mlp = Mlp(GpuLinear(block.gate_up), GpuLinear(block.down))
    x_TD = random(num_tokens, D, seed=3) * D**0.5
    found = mlp(x_TD)
    assert found.shape == x_TD.shape
    if num_tokens:
        assert relative_error(found, exact_swiglu(block, x_TD)) < 1e-2
