"""Logprobs of chosen tokens and of a prompt."""

from __future__ import annotations

import pytest
import torch

from protos.errors import InternalError
from router.logprobs import prompt_logprobs, token_logprobs
from router.request import TokenLogprob


def test_logprobs_are_those_of_log_softmax_and_the_top_is_sorted() -> None:
    logits_BV = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)) * 3
    reports = token_logprobs(logits_BV, [5, 6, 7], [4, None, 0])
    expected_BV = logits_BV.log_softmax(dim=-1)
    top = expected_BV[0].sort(descending=True)
    assert reports[0] == TokenLogprob(
        token_id=5,
        logprob=float(expected_BV[0, 5]),
        top=tuple(zip(top.indices[:4].tolist(), top.values[:4].tolist(), strict=True)),
    )
    assert reports[1] is None
    assert reports[2] == TokenLogprob(token_id=7, logprob=float(expected_BV[2, 7]))


def test_equally_likely_alternatives_are_listed_by_id() -> None:
    report = token_logprobs(torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0]]), [4], [4])[0]
    assert report is not None
    assert [token_id for token_id, _ in report.top] == [1, 3, 0, 2]


def test_half_precision_logits_of_many_tokens_are_summed_in_float32() -> None:
    logits_BV = torch.zeros(3, 200_000, dtype=torch.bfloat16)
    logits_BV[2, 11] = 10.0
    reports = token_logprobs(logits_BV, [9, 10, 11], [1, 1, 1])
    assert [report and report.token_id for report in reports] == [9, 10, 11]
    assert [report and report.top[0][0] for report in reports] == [0, 0, 11]
    assert [report and report.logprob for report in reports] == pytest.approx(
        [-12.206073, -12.206073, -2.310547], abs=1e-4
    )


def test_more_alternatives_than_tokens_lists_every_token() -> None:
    report = token_logprobs(torch.zeros(1, 3), [1], [20])[0]
    assert report is not None
    assert len(report.top) == 3


def test_rows_that_asked_for_nothing_get_nothing() -> None:
    assert token_logprobs(torch.full((2, 4), float("nan")), [0, 1], [None, None]) == [None, None]


def test_logits_that_are_not_finite_name_their_row() -> None:
    logits_BV = torch.zeros(2, 4)
    logits_BV[1, 2] = float("nan")
    with pytest.raises(InternalError, match="in row 1;") as caught:
        token_logprobs(logits_BV, [0, 0], [1, 1])
    assert caught.value.metadata == {"rows": "1"}


@pytest.mark.parametrize("chunks", [[6], [5, 1], [1] * 6, [2, 4], [3, 2, 1]])
def test_the_chunks_of_a_prompt_together_report_each_token_once(chunks: list[int]) -> None:
    prompt_ids = (3, 1, 4, 1, 5, 9)
    logits_TV = torch.randn(6, 10, generator=torch.Generator().manual_seed(1))
    expected_TV = logits_TV.log_softmax(dim=-1)
    reports, start = [], 0
    for size in chunks:
        reports += prompt_logprobs(logits_TV[start : start + size], prompt_ids, start, num_top=2)
        start += size
    assert [report.token_id for report in reports] == list(prompt_ids)
    assert reports[0] == TokenLogprob(token_id=3, logprob=0.0)
    for position, report in enumerate(reports[1:], start=1):
        assert report.logprob == float(expected_TV[position - 1, prompt_ids[position]])
        assert report.top[0][1] == float(expected_TV[position - 1].max())
        assert len(report.top) == 2
