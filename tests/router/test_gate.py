"""The gate: choice by logit, score by sigmoid, ties to the lower index."""

from __future__ import annotations

import pytest
import torch

from router.gate import route


def gate_of(logits: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return hidden states and gate weights whose product is `logits`."""
    logits_TE = torch.tensor(logits)
    return torch.eye(len(logits)), logits_TE.T.contiguous()


@pytest.mark.parametrize("num_chosen", [1, 2])
def test_equal_logits_choose_the_lower_experts(num_chosen):
    hidden_TD, gate_ED = gate_of([[1.0, 7.0, 7.0, 7.0], [3.0, 3.0, 3.0, 3.0]])
    ids_TK, _ = route(hidden_TD, gate_ED, num_chosen)
    assert ids_TK.tolist() == [[1, 2][:num_chosen], [0, 1][:num_chosen]]


def test_scores_are_the_sigmoid_of_the_chosen_logits_and_are_not_renormalised():
    hidden_TD, gate_ED = gate_of([[0.0, 2.0, -1.0]])
    ids_TK, scores_TK = route(hidden_TD, gate_ED, 2)
    assert ids_TK.tolist() == [[1, 0]]
    torch.testing.assert_close(scores_TK, torch.sigmoid(torch.tensor([[2.0, 0.0]])))


def test_ties_among_many_bfloat16_logits_are_broken_by_index():
    hidden_TD = torch.ones(64, 4, dtype=torch.bfloat16)
    gate_ED = torch.ones(128, 4, dtype=torch.bfloat16)
    ids_TK, scores_TK = route(hidden_TD, gate_ED, 1)
    assert ids_TK.unique().tolist() == [0]
    assert scores_TK.dtype == torch.bfloat16
