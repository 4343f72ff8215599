"""Joining dispatches and splitting their outputs."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from experts.merge import merge, split
from experts.work import Work

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
counts_by_expert = st.dictionaries(st.integers(0, 7), st.integers(1, 5), min_size=1, max_size=4)


def work_of(counts: dict[int, int], first_row: int = 0) -> Work:
    """Return work whose tokens are (expert, row number), so that every token tells where it belongs."""
    ids = sorted(counts)
    experts_N = [expert for expert in ids for _ in range(counts[expert])]
    hidden_ND = torch.tensor([[float(expert), first_row + row] for row, expert in enumerate(experts_N)])
    return Work(
        layer=0,
        expert_ids=tuple(ids),
        token_counts=tuple(counts[expert] for expert in ids),
        num_tokens=len(hidden_ND),
        hidden_ND=hidden_ND,
        arrived_s=0,
        deliver=lambda outcome: None,
    )


@given(st.lists(counts_by_expert, min_size=1, max_size=5))
def test_split_gives_back_what_merge_took(dispatches):
    works = [work_of(counts, 100 * number) for number, counts in enumerate(dispatches)]
    batch = merge(works)
    parts = split(batch, batch.hidden_ND * 2)
    assert len(parts) == len(works)
    assert all(torch.equal(part_ND, work.hidden_ND * 2) for part_ND, work in zip(parts, works, strict=True))


@given(st.lists(counts_by_expert, min_size=1, max_size=5))
def test_merged_tokens_are_sorted_by_expert_and_counted(dispatches):
    batch = merge([work_of(counts) for counts in dispatches])
    expected = torch.tensor(batch.expert_ids, dtype=torch.float32).repeat_interleave(torch.tensor(batch.token_counts))
    assert torch.equal(batch.hidden_ND[:, 0], expected)
    assert list(batch.expert_ids) == sorted({expert for counts in dispatches for expert in counts})


def test_one_dispatch_is_not_copied():
    work = work_of({1: 2, 3: 1})
    batch = merge([work])
    assert batch.hidden_ND is work.hidden_ND
    outputs_ND = torch.ones(3, 2)
    assert split(batch, outputs_ND)[0] is outputs_ND


def test_tokens_that_came_through_the_host_join_those_on_a_gpu_there():
    on_host, on_gpu = work_of({0: 2, 3: 1}), work_of({1: 2})
    on_gpu.hidden_ND = on_gpu.hidden_ND.to(DEVICE)
    batch = merge([on_host, on_gpu])
    assert batch.hidden_ND.device == DEVICE
    assert all(
        torch.equal(part_ND, work.hidden_ND.to(DEVICE))
        for part_ND, work in zip(split(batch, batch.hidden_ND), (on_host, on_gpu), strict=True)
    )
