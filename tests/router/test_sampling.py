"""choose_tokens: what holds for every row and batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from protos.errors import InternalError
from router.request import GenerationRequest, SamplingParams
from router.sampling import SamplingState, choose_tokens

NAN, INF = float("nan"), float("inf")
GREEDY = SamplingParams(temperature=0.0)
LLAMA_VOCAB = 202_048


def state_of(params: SamplingParams, prompt_ids: tuple[int, ...] = (0,)) -> SamplingState:
    return SamplingState(GenerationRequest(request_id="r", prompt_ids=prompt_ids, max_tokens=8, sampling=params))


def sampling_params() -> st.SearchStrategy[SamplingParams]:
    return st.builds(
        SamplingParams,
        temperature=st.sampled_from([0.0, 1e-6, 0.3, 1.0, 50.0]),
        top_k=st.integers(0, 50),
        top_p=st.floats(0.01, 1.0),
        min_p=st.floats(0.0, 1.0),
        repetition_penalty=st.sampled_from([1.0, 0.5, 1.7]),
        presence_penalty=st.sampled_from([0.0, -2.0, 1.1]),
        frequency_penalty=st.sampled_from([0.0, 2.0]),
        seed=st.integers(0, 2**64 - 1),
    )


# Steps of a quarter make ties common; -inf is a token that must never be chosen.
LOGITS = st.lists(st.integers(-20, 20).map(lambda step: step / 4) | st.just(-INF), min_size=12, max_size=12).filter(
    lambda row: max(row) > -INF
)
ROWS = st.lists(st.tuples(LOGITS, sampling_params(), st.integers(1, 5)), min_size=1, max_size=6)


def batch_of(rows: list[tuple[list[float], SamplingParams, int]]) -> tuple[Tensor, list[SamplingState]]:
    states = [state_of(params, tuple(range(length))) for _, params, length in rows]
    return torch.tensor([row for row, _, _ in rows]), states


@settings(deadline=None, max_examples=60)
@given(rows=ROWS, data=st.data())
def test_a_row_is_chosen_alike_whatever_its_neighbours_and_place(
    rows: list[tuple[list[float], SamplingParams, int]], data: st.DataObject
) -> None:
    logits_BV, states = batch_of(rows)
    together = choose_tokens(logits_BV, states)
    alone = [choose_tokens(logits_BV[row : row + 1], [state])[0] for row, state in enumerate(states)]
    order = data.draw(st.permutations(range(len(rows))))
    shuffled = choose_tokens(logits_BV[order], [states[row] for row in order])
    assert together == alone
    assert shuffled == [together[row] for row in order]


@settings(deadline=None, max_examples=60)
@given(rows=ROWS)
def test_every_chosen_token_is_one_the_rules_keep(rows: list[tuple[list[float], SamplingParams, int]]) -> None:
    plain = [
        (row, SamplingParams(temperature=own.temperature, top_k=own.top_k, min_p=own.min_p, seed=own.seed), length)
        for row, own, length in rows
    ]
    for token_id, (row, own, _) in zip(choose_tokens(*batch_of(plain)), plain, strict=True):
        ranking = sorted(range(len(row)), key=lambda token: (-row[token], token))
        assert row[token_id] > -INF
        assert ranking.index(token_id) < (own.top_k or len(row))
        if own.temperature > 0:
            ratio = torch.tensor((row[token_id] - max(row)) / own.temperature, dtype=torch.float64).exp()
            assert ratio >= own.min_p


@settings(deadline=None, max_examples=60)
@given(rows=ROWS)
def test_rules_that_keep_one_token_choose_as_greedy_does(
    rows: list[tuple[list[float], SamplingParams, int]],
) -> None:
    logits_BV, _ = batch_of(rows)
    expected = logits_BV.argmax(dim=-1).tolist()
    for rule in (
        {"temperature": 0.0},
        {"temperature": 5.0, "top_k": 1},
        {"temperature": 5.0, "top_p": 1e-9},
    ):
        states = [state_of(SamplingParams(seed=own.seed, **rule)) for _, own, _ in rows]  # type: ignore[arg-type]
        assert choose_tokens(logits_BV, states) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_greedy_takes_the_lowest_of_equally_likely_ids(dtype: torch.dtype) -> None:
    logits_BV = torch.zeros(4, LLAMA_VOCAB, dtype=dtype)
    ties = [[0, LLAMA_VOCAB - 1], [LLAMA_VOCAB - 2, LLAMA_VOCAB - 1], [77, 78, 100_000], [15, 31, 200_000]]
    for row, ids in enumerate(ties):
        logits_BV[row, ids] = 3.0
    penalised = SamplingParams(temperature=0.0, presence_penalty=0.1)
    for params in (GREEDY, penalised, SamplingParams(top_k=1)):
        assert choose_tokens(logits_BV, [state_of(params)] * 4) == [ids[0] for ids in ties]


def test_negative_zero_ties_with_zero() -> None:
    logits_BV = torch.tensor([[-1.0, -0.0, 0.0, -0.0]])
    assert choose_tokens(logits_BV, [state_of(GREEDY)]) == [1]
    assert choose_tokens(logits_BV, [state_of(SamplingParams(top_k=1))]) == [1]


def test_top_k_keeps_exactly_k_of_equally_likely_tokens() -> None:
    states = [state_of(SamplingParams(top_k=3, seed=seed)) for seed in range(64)]
    assert set(choose_tokens(torch.zeros(64, 5000), states)) == {0, 1, 2}


def test_greedy_and_drawn_rows_share_a_batch() -> None:
    logits_BV = torch.randn(6, 3000, generator=torch.Generator().manual_seed(0))
    params = [GREEDY, SamplingParams(seed=1), GREEDY, SamplingParams(seed=2, top_p=0.5), GREEDY, SamplingParams()]
    chosen = choose_tokens(logits_BV, [state_of(own) for own in params])
    assert chosen[::2] == logits_BV.argmax(dim=-1).tolist()[::2]
    assert chosen == [choose_tokens(logits_BV[i : i + 1], [state_of(own)])[0] for i, own in enumerate(params)]


def test_position_and_seed_change_the_choice_and_nothing_else_does() -> None:
    logits_V = torch.zeros(1, 1000)
    state = state_of(SamplingParams(seed=1), (5, 6, 7))
    first = choose_tokens(logits_V, [state])
    assert choose_tokens(logits_V, [state]) == first
    assert choose_tokens(logits_V, [state_of(SamplingParams(seed=1), (8, 8, 8))]) == first
    assert choose_tokens(logits_V, [state_of(SamplingParams(seed=2), (5, 6, 7))]) != first
    state.append(first[0])
    assert state.position == 4
    assert choose_tokens(logits_V, [state]) != first


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(), SamplingParams(temperature=0, presence_penalty=1.0)])
@pytest.mark.parametrize("bad_row", [[1.0, NAN, 2.0], [-INF, -INF, -INF], [1.0, INF, 2.0], [NAN, -INF, INF]])
def test_rows_without_probabilities_are_named(params: SamplingParams, bad_row: list[float]) -> None:
    logits_BV = torch.tensor([[1.0, 2.0, 3.0], bad_row, [0.0, 0.0, -INF], bad_row])
    with pytest.raises(InternalError, match=r"found (nan|-?inf) in row 1, (nan|-?inf) in row 3; end") as caught:
        choose_tokens(logits_BV, [state_of(params)] * 4)
    assert caught.value.metadata == {"rows": "1,3"}


def test_an_empty_batch_has_no_choices() -> None:
    assert choose_tokens(torch.empty(0, 10), []) == []


def test_logits_are_left_unchanged() -> None:
    logits_BV = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    before = logits_BV.clone()
    choose_tokens(logits_BV, [state_of(SamplingParams(repetition_penalty=3.0)), state_of(GREEDY)])
    assert torch.equal(logits_BV, before)
