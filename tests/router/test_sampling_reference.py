"""Kept sets, probabilities and chosen tokens against transformers' processors, in float64."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from router.candidates import HEAD_WIDTH, Rules, keep_candidates
from router.penalties import SeenTokens, penalise
from router.request import GenerationRequest, SamplingParams
from router.sampling import SamplingState, choose_tokens
from router.seed import uniform

WIDE = 4 * HEAD_WIDTH + 37
FILTERS = [
    SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    for temperature, top_k, top_p, min_p in product(
        [0.25, 1.0, 3.0], [0, 40, HEAD_WIDTH + 500, WIDE + 1], [1.0, 0.9, 0.3], [0.0, 0.02]
    )
]


def distinct_logits(vocab_size: int, spread: float, seed: int) -> Tensor:
    """Logits [V] float32, no two alike: transformers keeps every token that ties with the k-th, we exactly k."""
    shuffled = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(seed))
    return (torch.linspace(-1, 1, vocab_size, dtype=torch.float64)[shuffled] ** 3 * spread).float()


def reference_probabilities(logits_V: Tensor, params: SamplingParams, seen_ids: list[int]) -> Tensor:
    """Return [V] float64 as transformers computes it, its classes in the order that vLLM documents."""
    steps = LogitsProcessorList()
    if params.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.temperature != 1:
        steps.append(TemperatureLogitsWarper(params.temperature))
    if params.min_p > 0:
        steps.append(MinPLogitsWarper(params.min_p))
    if params.top_k > 0:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p < 1:
        steps.append(TopPLogitsWarper(params.top_p))
    return torch.as_tensor(steps(torch.LongTensor([seen_ids]), logits_V.double()[None])[0]).softmax(0)


def drawn_from(probabilities_V: Tensor, number: float) -> int:
    """Return the token at which the sum of the sorted probabilities passes a number."""
    order = probabilities_V.argsort(descending=True, stable=True)
    return int(order[torch.searchsorted(probabilities_V[order].cumsum(0), number, right=True)])


@pytest.mark.parametrize("spread", [4.0, 40.0])
def test_kept_tokens_and_probabilities_equal_those_of_transformers(spread: float) -> None:
    logits_V = distinct_logits(WIDE, spread, seed=1)
    for params in FILTERS:
        candidates = keep_candidates(logits_V[None], Rules.of([params], WIDE, logits_V.device), WIDE)
        expected_V = reference_probabilities(logits_V, params, [0])
        assert bool(candidates.is_complete_B1)
        kept = candidates.ids_BW[0, : int(candidates.num_kept_B1)]
        assert set(kept.tolist()) == set(expected_V.nonzero().flatten().tolist()), params
        weights = candidates.reached_BW[0].diff(prepend=torch.zeros(1, dtype=torch.float64))[: len(kept)]
        torch.testing.assert_close(weights / candidates.mass_B1[0], expected_V[kept], rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("spread", [4.0, 40.0])
def test_chosen_tokens_equal_a_draw_from_the_probabilities_of_transformers(spread: float) -> None:
    logits_BV = torch.stack([distinct_logits(WIDE, spread, seed) for seed in range(len(FILTERS))])
    states = [
        SamplingState(GenerationRequest(request_id="r", prompt_ids=(3,) * 9, max_tokens=1, sampling=params))
        for params in FILTERS
    ]
    expected = [
        drawn_from(reference_probabilities(logits_V, params, [0]), uniform(0, 9))
        for logits_V, params in zip(logits_BV, FILTERS, strict=True)
    ]
    assert choose_tokens(logits_BV, states) == expected


def test_flat_rows_are_settled_beyond_the_first_ranked_tokens() -> None:
    logits_BV = distinct_logits(WIDE, 0.5, seed=2).expand(60, -1)
    rules = [{}, {"top_p": 0.95}, {"min_p": 0.5}, {"min_p": 0.5, "top_p": 0.9}]
    params = [SamplingParams(seed=seed, **rules[seed % 4]) for seed in range(60)]  # type: ignore[arg-type]
    states = [
        SamplingState(GenerationRequest(request_id="r", prompt_ids=(3,), max_tokens=1, sampling=own)) for own in params
    ]
    expected = [drawn_from(reference_probabilities(logits_BV[0], own, [0]), uniform(own.seed, 1)) for own in params]
    chosen = choose_tokens(logits_BV, states)
    assert chosen == expected
    head = set(logits_BV[0].topk(HEAD_WIDTH).indices.tolist())
    assert any(token_id in head for token_id in chosen)
    assert any(token_id not in head for token_id in chosen)


@pytest.mark.parametrize("penalty", [0.5, 1.3, 100.0])
def test_repetition_penalty_equals_that_of_transformers_on_prompt_and_output(penalty: float) -> None:
    logits_BV = torch.randn(3, 50, generator=torch.Generator().manual_seed(4)) * 4
    prompts, outputs = [[1, 2, 2, 3], [7], [49, 0]], [[3, 4], [], [0, 0, 48]]
    expected_BV = torch.cat(
        [
            RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([prompt + output]), logits_V[None])
            for prompt, output, logits_V in zip(prompts, outputs, logits_BV, strict=True)
        ]
    )
    seen = [SeenTokens(prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]
    penalise(logits_BV, seen, [SamplingParams(repetition_penalty=penalty)] * 3)
    assert torch.equal(logits_BV, expected_BV)
