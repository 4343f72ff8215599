"""plan and combine: every routed token reaches its expert once and comes back to its place."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from router.combine import combine
from router.plan import DispatchPlan, plan_dispatch

NUM_EXPERTS, HIDDEN = 8, 3


@st.composite
def routings(draw):
    num_tokens, num_choices = draw(st.integers(0, 12)), draw(st.integers(1, 3))
    ids = draw(
        st.lists(st.integers(-1, NUM_EXPERTS - 1), min_size=num_tokens * num_choices, max_size=num_tokens * num_choices)
    )
    holders = draw(st.lists(st.integers(0, 3), min_size=NUM_EXPERTS, max_size=NUM_EXPERTS))
    return torch.tensor(ids, dtype=torch.int64).reshape(num_tokens, num_choices), holders


def make_plan(expert_ids_TK: torch.Tensor, holders: list[int]) -> DispatchPlan:
    return plan_dispatch(
        expert_ids_TK,
        lambda counts: {expert: ((f"replica-{holders[expert]}", count),) for expert, count in counts.items()},
    )


@given(routings())
def test_plan_holds_every_used_slot_once_and_no_unused_one(routing):
    expert_ids_TK, holders = routing
    plan = make_plan(expert_ids_TK, holders)
    used = [slot for slot, expert in enumerate(expert_ids_TK.flatten().tolist()) if expert >= 0]
    assert sorted(plan.slots_N.tolist()) == used


@given(routings())
def test_shares_cover_the_plan_and_name_each_rows_expert_and_holder(routing):
    expert_ids_TK, holders = routing
    plan = make_plan(expert_ids_TK, holders)
    row_experts = expert_ids_TK.flatten()[plan.slots_N].tolist()
    start = 0
    for share in plan.shares:
        assert share.start == start
        assert list(share.expert_ids) == sorted(set(share.expert_ids))
        expected = [e for e, n in zip(share.expert_ids, share.token_counts, strict=True) for _ in range(n)]
        assert row_experts[share.start : share.stop] == expected
        assert {f"replica-{holders[expert]}" for expert in share.expert_ids} == {share.replica_id}
        start = share.stop
    assert start == len(row_experts)


@given(routings())
def test_combining_what_identity_experts_return_adds_each_token_once_per_choice(routing):
    expert_ids_TK, holders = routing
    plan = make_plan(expert_ids_TK, holders)
    hidden_TD = torch.arange(expert_ids_TK.shape[0] * HIDDEN, dtype=torch.float32).reshape(-1, HIDDEN)
    combined_TD = combine(torch.zeros_like(hidden_TD), hidden_TD[plan.token_rows_N], plan.slots_N, plan.num_choices)
    used_T = (expert_ids_TK >= 0).sum(dim=1, keepdim=True)
    assert torch.equal(combined_TD, hidden_TD * used_T)


def test_used_experts_are_assigned_once_and_together():
    asked = []

    def assign(counts):
        asked.append(list(counts.items()))
        return {expert: (("only", count),) for expert, count in counts.items()}

    plan_dispatch(torch.tensor([[5], [2], [5], [-1]]), assign)
    plan_dispatch(torch.tensor([[-1]]), assign)
    assert asked == [[(2, 1), (5, 2)]]


def test_tokens_of_an_expert_that_replicas_share_are_cut_in_order():
    assignment = {0: (("a", 1),), 1: (("a", 2), ("b", 1))}
    plan = plan_dispatch(torch.tensor([[1], [0], [1], [1]]), lambda counts: assignment)
    assert [(share.replica_id, share.expert_ids, share.token_counts) for share in plan.shares] == [
        ("a", (0, 1), (1, 2)),
        ("b", (1,), (1,)),
    ]
    assert plan.token_rows_N.tolist() == [1, 0, 2, 3]


def test_tokens_of_one_expert_keep_their_order():
    plan = make_plan(torch.tensor([[1], [0], [1], [0]]), [0, 0])
    assert plan.token_rows_N.tolist() == [1, 3, 0, 2]


@given(routings(), st.randoms(use_true_random=False))
def test_a_tokens_sum_does_not_depend_on_which_replicas_ran_its_experts(routing, random):
    expert_ids_TK, holders = routing
    outputs_SD = torch.randn(expert_ids_TK.numel(), HIDDEN, generator=torch.Generator().manual_seed(1))
    base_TD = torch.randn(expert_ids_TK.shape[0], HIDDEN, generator=torch.Generator().manual_seed(2))
    plans = [make_plan(expert_ids_TK, order) for order in (holders, random.sample(holders, len(holders)))]
    first_TD, second_TD = (combine(base_TD, outputs_SD[plan.slots_N], plan.slots_N, plan.num_choices) for plan in plans)
    assert torch.equal(first_TD, second_TD)
