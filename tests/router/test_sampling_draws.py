"""Random numbers keyed by (seed, position), and the frequencies they lead to. All seeds are fixed: nothing flakes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor

from router.candidates import Rules, draw, keep_candidates
from router.request import GenerationRequest, SamplingParams
from router.sampling import SamplingState, choose_tokens
from router.seed import choice_seed, uniform


def critical_chi_square(degrees: int) -> float:
    """Exceeded by chance once in 10,000 (Wilson and Hilferty's approximation)."""
    spread = 2 / (9 * degrees)
    return float(degrees * (1 - spread + 3.719 * spread**0.5) ** 3)


def chi_square(counts: Counter[int], probabilities: Tensor) -> float:
    total = counts.total()
    expected = {token: float(p) * total for token, p in enumerate(probabilities) if p > 0}
    assert set(counts) <= set(expected), "a token without probability was drawn"
    return sum((counts[token] - mean) ** 2 / mean for token, mean in expected.items())


def test_uniform_is_the_same_for_ever() -> None:
    # These numbers are the contract between replicas of different versions: changing them breaks running streams.
    assert uniform(0, 0) == 0.41693913115950165
    assert uniform(2**64 - 1, 10_000_000) == 0.665824043455339
    assert choice_seed(7, 1) == 3839616360365740667


@pytest.mark.parametrize(
    "keys",
    [
        [(0, position) for position in range(50_000)],
        [(seed, 17) for seed in range(50_000)],
        [(seed, 300 - seed) for seed in range(300)] + [(choice_seed(5, choice), 3) for choice in range(50_000)],
    ],
    ids=["positions", "seeds", "choices"],
)
def test_uniform_fills_every_part_of_the_unit_interval_alike(keys: list[tuple[int, int]]) -> None:
    numbers = [uniform(seed, position) for seed, position in keys]
    assert min(numbers) >= 0
    assert max(numbers) < 1
    buckets = Counter(int(number * 100) for number in numbers)
    assert chi_square(buckets, torch.full((100,), 0.01)) < critical_chi_square(99)


def test_uniform_of_neighbours_is_independent() -> None:
    for step in [(0, 1), (1, 0), (1, 1), (1, -1)]:
        pairs = Counter(
            int(uniform(seed, position) * 10) * 10 + int(uniform(seed + step[0], position + step[1]) * 10)
            for seed in range(0, 400, 2)
            for position in range(1, 200, 2)
        )
        assert chi_square(pairs, torch.full((100,), 0.01)) < critical_chi_square(99)


def test_choices_of_one_request_have_different_seeds_and_the_first_keeps_its_own() -> None:
    seeds = [choice_seed(seed, choice) for seed in range(50) for choice in range(1, 17)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**64 for seed in seeds)
    assert choice_seed(2**64 - 1, 0) == 2**64 - 1
    assert choice_seed(2**64 - 1, 15) < 2**64


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.6, top_p=0.9),
        SamplingParams(temperature=1.7, top_k=7),
        SamplingParams(temperature=1.3, min_p=0.1, top_k=9, top_p=0.8),
    ],
    ids=["plain", "nucleus", "top-k", "all"],
)
def test_tokens_are_drawn_as_often_as_their_probability_says(params: SamplingParams) -> None:
    logits_V = torch.randn(16, generator=torch.Generator().manual_seed(3)) * 1.5
    probabilities = expected_probabilities(logits_V, params)
    states = [
        SamplingState(
            GenerationRequest(
                request_id="r",
                prompt_ids=(0,) * (1 + index % 40),
                max_tokens=1,
                sampling=SamplingParams(
                    temperature=params.temperature,
                    top_k=params.top_k,
                    top_p=params.top_p,
                    min_p=params.min_p,
                    seed=index // 40,
                ),
            )
        )
        for index in range(8000)
    ]
    counts = Counter(choose_tokens(logits_V.expand(len(states), -1), states))
    degrees = int((probabilities > 0).sum()) - 1
    assert chi_square(counts, probabilities) < critical_chi_square(degrees)
    flatter = (probabilities**0.8) / (probabilities**0.8).sum()
    assert chi_square(counts, flatter) > critical_chi_square(degrees), "the test would not notice a wrong temperature"


def expected_probabilities(logits_V: Tensor, params: SamplingParams) -> Tensor:
    """Spell out min_p, top_k, top_p one after the other with a sort each."""
    probabilities = (logits_V.double() / params.temperature).softmax(0)
    probabilities[probabilities < params.min_p * probabilities.max()] = 0
    order = probabilities.argsort(descending=True, stable=True)
    probabilities[order[params.top_k or 16 :]] = 0
    probabilities /= probabilities.sum()
    before = probabilities[order].cumsum(0) - probabilities[order]
    probabilities[order[before >= params.top_p]] = 0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize("largest", [1 - 2**-53, 1.0])
def test_a_number_next_to_one_draws_the_last_token_that_has_any_probability(largest: float) -> None:
    logits_BV = torch.tensor([[0.0, -5.0, -float("inf"), -1e30, -30.0]])
    rules = Rules.of([SamplingParams()], 5, logits_BV.device)
    ids_B, is_final_B = draw(keep_candidates(logits_BV, rules, 5), [largest])
    assert ids_B.tolist() == [4]
    assert is_final_B.tolist() == [True]


def test_number_zero_draws_the_likeliest_token() -> None:
    logits_BV = torch.tensor([[-3.0, 2.0, 2.0, 1.0]])
    rules = Rules.of([SamplingParams()], 4, logits_BV.device)
    assert draw(keep_candidates(logits_BV, rules, 4), [0.0])[0].tolist() == [1]


def test_each_token_owns_the_numbers_from_the_sum_before_it_up_to_its_own() -> None:
    logits_BV = torch.zeros(4, 2)
    rules = Rules.of([SamplingParams()] * 4, 2, logits_BV.device)
    ids_B, _ = draw(keep_candidates(logits_BV, rules, 2), [0.0, 0.5 - 2**-53, 0.5, 0.75])
    assert ids_B.tolist() == [0, 0, 1, 1]
