"""Presence and frequency penalties, and which tokens they are for."""

from __future__ import annotations

import torch

from router.penalties import SeenTokens, penalise
from router.request import GenerationRequest, SamplingParams
from router.sampling import SamplingState, choose_tokens


def test_presence_and_frequency_are_subtracted_for_output_tokens_only() -> None:
    logits_BV = torch.zeros(1, 6)
    seen = SeenTokens([0, 1, 1], [1, 2, 2, 2])
    penalise(logits_BV, [seen], [SamplingParams(presence_penalty=1.5, frequency_penalty=0.25)])
    assert logits_BV.tolist() == [[0.0, -1.75, -2.25, 0.0, 0.0, 0.0]]


def test_repetition_comes_before_presence_and_frequency() -> None:
    logits_BV = torch.tensor([[4.0, -4.0, 1.0]])
    penalise(logits_BV, [SeenTokens([], [0, 1])], [SamplingParams(repetition_penalty=2.0, presence_penalty=1.0)])
    assert logits_BV.tolist() == [[1.0, -9.0, 1.0]]


def test_rows_without_seen_tokens_stay_as_they_are() -> None:
    logits_BV = torch.arange(8.0).reshape(2, 4)
    penalise(logits_BV, [None, SeenTokens([3])], [SamplingParams(), SamplingParams(repetition_penalty=7.0)])
    assert logits_BV.tolist() == [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 1.0]]


def test_a_tiny_repetition_penalty_leaves_logits_finite() -> None:
    logits_BV = torch.tensor([[3.0, -3.0, 0.0, -float("inf")]])
    penalise(logits_BV, [SeenTokens(range(4))], [SamplingParams(repetition_penalty=1e-44)])
    assert logits_BV[0, :3].isfinite().all()
    assert logits_BV[0, 3] == -float("inf")


def test_penalties_move_the_greedy_choice_as_tokens_are_appended() -> None:
    params = SamplingParams(temperature=0, frequency_penalty=1.0)
    state = SamplingState(GenerationRequest(request_id="r", prompt_ids=(2,), max_tokens=9, sampling=params))
    logits_BV = torch.tensor([[1.5, 1.0, 0.75]])
    chosen = []
    for _ in range(5):
        chosen += choose_tokens(logits_BV, [state])
        state.append(chosen[-1])
    assert chosen == [0, 1, 2, 0, 1]
    assert logits_BV.tolist() == [[1.5, 1.0, 0.75]]


def test_a_replay_on_another_replica_goes_on_with_the_same_tokens() -> None:
    params = SamplingParams(
        temperature=0.9, frequency_penalty=0.7, presence_penalty=0.4, repetition_penalty=1.2, seed=3
    )
    logits_V = torch.randn(20, generator=torch.Generator().manual_seed(5))

    def generate(state: SamplingState, num_tokens: int) -> list[int]:
        tokens: list[int] = []
        for _ in range(num_tokens):
            tokens += choose_tokens(logits_V[None], [state])
            state.append(tokens[-1])
        return tokens

    request = GenerationRequest(request_id="r", prompt_ids=(1, 2, 3), max_tokens=30, sampling=params)
    whole = generate(SamplingState(request), 30)
    resumed = GenerationRequest(request_id="r", prompt_ids=(1, 2, 3, *whole[:11]), max_tokens=19, sampling=params)
    assert generate(SamplingState(resumed, num_replayed=11), 19) == whole[11:]
