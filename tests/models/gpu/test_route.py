"""Choosing, sorting and listing on the device, against the router's gate and plan on the host."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from models.gpu.route import can_route, most_tiles, route
from router.gate import route as choose
from router.plan import plan_dispatch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
WIDTH, TILE = 24, 4


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def addresses(num_experts: int) -> torch.Tensor:
    return (torch.arange(num_experts * 4, device=DEVICE).view(num_experts, 4) + 1) * 100


def routed(logits_TE, num_there, normed_TD, num_choices):
    """Route; return rows sorted by expert, where each choice went, and both tables."""
    num_tokens, num_experts = logits_TE.shape
    x_ND = torch.full((num_tokens * num_choices, WIDTH), float("nan"), device=DEVICE)
    num_tiles = most_tiles(num_tokens * num_choices, num_experts, TILE)
    tables = torch.full((2, num_tiles, 4), 77, dtype=torch.int64, device=DEVICE).unbind(0)
    count = torch.tensor([num_there], dtype=torch.int32, device=DEVICE)
    experts = addresses(num_experts)
    rows_TK = route(logits_TE, count, normed_TD, experts, x_ND, *tables, num_choices=num_choices, tile=TILE)
    return x_ND, rows_TK, *tables


@pytest.mark.parametrize(("num_tokens", "num_there"), [(1, 1), (8, 5), (16, 16), (24, 21)])
@pytest.mark.parametrize(("num_experts", "num_choices"), [(4, 1), (6, 2), (2, 1)])
def test_tokens_lie_as_a_plan_of_the_host_sorts_them(num_tokens, num_there, num_experts, num_choices):
    normed_TD, logits_TE = random(num_tokens, WIDTH, seed=1), random(num_tokens, num_experts, seed=2)
    x_ND, rows_TK, gate_up_tiles, down_tiles = routed(logits_TE, num_there, normed_TD, num_choices)

    # A gate of one row for each expert that answers with these logits.
    ids_TK, scores_TK = choose(logits_TE[:num_there], torch.eye(num_experts, device=DEVICE), num_choices)
    plan = plan_dispatch(ids_TK, lambda counts: {expert: (("here", count),) for expert, count in counts.items()})
    (share,) = plan.shares
    expected_ND = (normed_TD[:num_there].repeat_interleave(num_choices, 0) * scores_TK.reshape(-1, 1))[plan.slots_N]
    torch.testing.assert_close(x_ND[: len(expected_ND)], expected_ND)
    assert x_ND[len(expected_ND) :].isnan().all()
    rows = rows_TK.flatten().tolist()
    assert [rows[slot] for slot in plan.slots_N.tolist()] == list(range(len(expected_ND)))
    assert rows_TK[num_there:].eq(-1).all()

    lines, start = [], 0
    for expert, tokens in zip(share.expert_ids, share.token_counts, strict=True):
        lines += [(expert, start + first, min(TILE, tokens - first)) for first in range(0, tokens, TILE)]
        start += tokens
    for table, column in ((gate_up_tiles, 0), (down_tiles, 2)):
        written = [line for line in table.tolist() if line[3]]
        assert written == [[*addresses(num_experts)[e, column : column + 2].tolist(), *rest] for e, *rest in lines]


def test_of_equal_answers_the_lower_expert_is_chosen():
    logits_TE = torch.tensor([[1.0, 2.0, 2.0, 2.0]], device=DEVICE)
    _, _, gate_up_tiles, _ = routed(logits_TE, 1, random(1, WIDTH, seed=1), 2)
    experts = [line[0] for line in gate_up_tiles.tolist() if line[3]]
    assert experts == addresses(4)[1:3, 0].tolist()


def test_answers_that_are_no_numbers_choose_an_expert_that_exists():
    logits_TE = torch.full((2, 3), float("nan"), device=DEVICE)
    _, rows_TK, gate_up_tiles, _ = routed(logits_TE, 2, random(2, WIDTH, seed=1), 1)
    known = set(addresses(3)[:, 0].tolist())
    assert all(line[0] in known for line in gate_up_tiles.tolist() if line[3])
    assert sorted(rows_TK.flatten().tolist()) == [0, 1]


def test_a_row_of_no_numbers_leaves_the_tiles_of_others_whole():
    # Of two choices among two experts, token 15's second one begins a tile.
    logits_TE = random(20, 2, seed=3)
    logits_TE[15] = float("nan")
    _, rows_TK, gate_up_tiles, _ = routed(logits_TE, 20, random(20, WIDTH, seed=1), 2)
    covered = [row for _, _, first, count in gate_up_tiles.tolist() for row in range(first, first + count)]
    assert sorted(covered) == sorted(rows_TK.flatten().tolist()) == list(range(40))


def test_only_as_many_answers_as_a_program_can_look_at_are_sorted_so():
    assert can_route(64, 128)
    assert can_route(1024, 16)
    assert not can_route(256, 128)
