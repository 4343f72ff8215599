"""check_sampling: what a request may ask for."""

from __future__ import annotations

import math
from typing import Any

import pytest

from protos.errors import InvalidRequest
from router.request import SamplingParams
from router.sampling_bounds import check_sampling

NUMBERS = ["temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"]


def params_with(field: str, value: Any) -> SamplingParams:
    return SamplingParams(**{field: value})


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("temperature", [0, 0.0, 1, 1e-300, 100]),
        ("top_k", [0, 1, 10**30]),
        ("top_p", [5e-324, 0.5, 1, 1.0]),
        ("min_p", [0, 0.5, 1.0]),
        ("repetition_penalty", [1e-6, 1, 100.0]),
        ("presence_penalty", [-2, 0.0, 2.0]),
        ("frequency_penalty", [-2.0, 0, 2]),
        ("seed", [0, 2**64 - 1]),
    ],
)
def test_every_value_in_range_is_accepted(field: str, values: list[Any]) -> None:
    for value in values:
        check_sampling(params_with(field, value))


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, True, "1", None, [1.0], 1j, 10**400, b"1"])
def test_what_is_not_a_finite_number_is_refused(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{field}: expected a number in .+, found .+; use "):
        check_sampling(params_with(field, value))


@pytest.mark.parametrize("field", ["top_k", "seed"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0, True, "1", None, -1])
def test_what_is_not_a_whole_number_is_refused_where_one_is_needed(field: str, value: Any) -> None:
    with pytest.raises(InvalidRequest, match=rf"^{field}: expected a whole number in .+, found .+; use "):
        check_sampling(params_with(field, value))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 100.1),
        ("top_p", 0),
        ("top_p", -0.0),
        ("top_p", 1.0001),
        ("min_p", -0.01),
        ("min_p", 1.01),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", 100.5),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("seed", 2**64),
    ],
)
def test_a_number_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(InvalidRequest, match=f"^{field}: expected"):
        check_sampling(params_with(field, value))


def test_one_error_names_every_wrong_field_and_shortens_what_it_found() -> None:
    with pytest.raises(InvalidRequest) as caught:
        check_sampling(params_with("temperature", "x" * 1_000_000))
    assert len(caught.value.message) < 300
    with pytest.raises(InvalidRequest, match=r"temperature: expected.*top_k: expected"):
        check_sampling(SamplingParams(temperature=math.nan, top_k=-1))
