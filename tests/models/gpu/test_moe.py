"""A layer's experts on one card, few tokens and many, against one MLP after the other in double precision."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from models.gpu.linear import GpuLinear
from models.gpu.moe import DecodeExperts, ResidentExperts
from models.gpu.residual import Addend
from models.gpu.weight import GROUP, plain, round_fp8, round_int4
from models.linear.plain import PlainLinear
from models.llama4.mlp import Mlp
from models.llama4.norm import rms_norm
from router.gate import route

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROUND = {"plain": plain, "fp8": round_fp8, "int4": round_int4}
D, F, E, EPS = GROUP, GROUP, 5, 1e-5


def random(*shape: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * shape[-1] ** -0.5
    return values.to(dtype).to(DEVICE)


def mlp(form: str, seed: int, dtype: torch.dtype = torch.bfloat16) -> Mlp:
    weights = (random(*shape, seed=seed + index, dtype=dtype) for index, shape in enumerate(((2 * F, D), (D, F))))
    return Mlp(*(GpuLinear(ROUND[form](weight)) for weight in weights))


def exact(block: Mlp, x_TD: torch.Tensor) -> torch.Tensor:
    def weight(linear) -> torch.Tensor:
        held = linear.weight_OI if isinstance(linear, PlainLinear) else linear.weight.dequantized()
        return held.double()

    gate_TF, up_TF = (x_TD.double() @ weight(block.gate_up).t()).chunk(2, dim=1)
    return (torch.nn.functional.silu(gate_TF) * up_TF) @ weight(block.down).t()


def close(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found.double() - expected).norm() < 1e-2 * expected.norm())


def routed_sum(experts, normed_TD, ids_TK, scores_TK) -> torch.Tensor:
    rows = [
        sum(exact(experts[int(e)], row[None] * s) for e, s in zip(ids, scores, strict=True))
        for row, ids, scores in zip(normed_TD, ids_TK, scores_TK, strict=True)
    ]
    return torch.cat(rows)


@pytest.mark.parametrize("form", list(ROUND))
@pytest.mark.parametrize("num_choices", [1, 2])
def test_any_number_of_tokens_runs_through_the_experts_they_chose(form, num_choices):
    experts = {expert: mlp(form, 10 * expert) for expert in range(E)}
    resident = ResidentExperts.of(experts, mlp(form, 900), num_choices)
    normed_TD = random(19, D, seed=1) * D**0.5
    ids_TK, scores_TK = route(normed_TD, random(E, D, seed=2), num_choices)
    outputs_ND, slots_N = resident.run(normed_TD, ids_TK, scores_TK)
    found_TD = torch.zeros(19, D, device=DEVICE).index_add(0, slots_N // num_choices, outputs_ND.float())
    assert close(found_TD, routed_sum(experts, normed_TD, ids_TK, scores_TK))


@pytest.mark.parametrize("shared_form", ["as the others", "plain"])
@pytest.mark.parametrize("num_choices", [1, 2])
def test_a_decode_step_adds_what_experts_and_the_shared_one_give(num_choices, shared_form):
    # In float32: Triton's interpreter cuts off what bfloat16 has no room for, several times on this way.
    f32 = torch.float32
    experts = {expert: mlp("fp8", 10 * expert, f32) for expert in range(E)}
    shared = mlp("fp8" if shared_form == "as the others" else "plain", 900, f32)
    layer = DecodeExperts(ResidentExperts.of(experts, shared, num_choices), num_tokens=8)
    hidden_TD, attended_TD = random(8, D, seed=1, dtype=f32), random(8, D, seed=2, dtype=f32)
    norm_D, gate_ED = random(D, seed=3, dtype=f32) + 1, random(E, D, seed=4, dtype=f32)
    for num_there in (8, 3):  # again, with fewer: nothing of the first time is left
        count = torch.tensor([num_there], dtype=torch.int32, device=DEVICE)
        normed, addend = layer(hidden_TD, Addend(attended_TD), norm_D, EPS, gate_ED, count)
        expected_TD = hidden_TD + attended_TD
        torch.testing.assert_close(normed.hidden_TD, expected_TD)
        normed_TD = rms_norm(normed.hidden_TD, norm_D, EPS)[:num_there]
        routed = route(normed_TD, gate_ED, num_choices)
        expected = exact(shared, normed_TD) + routed_sum(experts, normed_TD, *routed)
        found = addend.base_TD[:num_there].double()
        for choice in range(num_choices):
            found = found + addend.outputs_ND[addend.rows_TK[:num_there, choice].long()].double()
        assert close(found, expected)
        assert addend.rows_TK[num_there:].eq(-1).all()
        assert layer.num_visited() == len(routed[0].unique())


def test_experts_of_several_forms_are_not_run_so():
    assert ResidentExperts.of({0: mlp("plain", 1), 1: mlp("fp8", 2)}, mlp("plain", 3), 1) is None


def test_what_lies_otherwise_is_not_run_so():
    class Other:
        num_bytes = 0

    assert ResidentExperts.of({0: Mlp(Other(), Other())}, mlp("plain", 3), 1) is None
