"""Adding, normalising and asking the gate in one launch, against torch's operators one by one."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from models.gpu.residual import Addend, add_norm
from models.llama4.norm import rms_norm

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WIDTH, EPS = 72, 1e-5


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


@pytest.mark.parametrize("num_experts", [0, 1, 6])
@pytest.mark.parametrize("adds", ["nothing", "a row", "a row and experts' rows"])
def test_one_launch_does_what_operators_do(adds, num_experts):
    num_tokens = 3
    hidden_TD, weight_D = random(num_tokens, WIDTH, seed=1), random(WIDTH, seed=2)
    gate_ED = random(num_experts, WIDTH, seed=3) if num_experts else None
    base_TD, outputs_ND = random(num_tokens, WIDTH, seed=4), random(5, WIDTH, seed=5)
    rows_TK = torch.tensor([[4, 0], [1, -1], [-1, -1]], dtype=torch.int32, device=DEVICE)
    addend, expected_TD = None, hidden_TD
    if adds != "nothing":
        addend, expected_TD = Addend(base_TD), hidden_TD + base_TD
    if adds == "a row and experts' rows":
        addend = Addend(base_TD, outputs_ND, rows_TK)
        expected_TD[0] += outputs_ND[4] + outputs_ND[0]
        expected_TD[1] += outputs_ND[1]
    before_TD = hidden_TD.clone()
    found = add_norm(hidden_TD, addend, weight_D, EPS, gate_ED=gate_ED)
    expected_normed_TD = rms_norm(expected_TD, weight_D, EPS)
    torch.testing.assert_close(found.hidden_TD, expected_TD)
    torch.testing.assert_close(found.normed_TD, expected_normed_TD)
    assert torch.equal(hidden_TD, before_TD)
    if gate_ED is None:
        assert found.logits_TE is None
    else:
        torch.testing.assert_close(found.logits_TE, expected_normed_TD @ gate_ED.t(), rtol=1e-5, atol=1e-5)


def test_what_is_normalised_may_go_where_the_caller_says():
    place_TD = torch.full((2, WIDTH), float("nan"), device=DEVICE)
    found = add_norm(random(2, WIDTH, seed=1), None, torch.ones(WIDTH, device=DEVICE), EPS, normed_TD=place_TD)
    assert found.normed_TD.data_ptr() == place_TD.data_ptr()
    torch.testing.assert_close(place_TD.square().mean(1), torch.ones(2, device=DEVICE), rtol=1e-3, atol=1e-3)
