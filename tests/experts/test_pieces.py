import pytest
import torch

from experts.merge import MergedBatch
from experts.pieces import pieces


@pytest.mark.parametrize(
    ("counts", "most", "expected"),
    [
        ((5,), 5, [{0: 5}]),
        ((5,), 2, [{0: 2}, {0: 2}, {0: 1}]),
        ((2, 2, 2), 4, [{0: 2, 1: 2}, {2: 2}]),
        ((3, 3), 4, [{0: 3}, {1: 3}]),  # an expert that fits a piece is not torn
        ((1, 6, 1), 4, [{0: 1}, {1: 4}, {1: 2, 2: 1}]),
        ((1, 1, 1), 1, [{0: 1}, {1: 1}, {2: 1}]),
        ((7, 7), 100, [{0: 7, 1: 7}]),
    ],
)
def test_pieces_are_the_rows_in_order_and_no_longer_than_asked(counts, most, expected):
    num_tokens = sum(counts)
    hidden_ND = torch.arange(num_tokens * 2.0).reshape(num_tokens, 2)
    found = list(pieces(MergedBatch(tuple(range(len(counts))), counts, hidden_ND, (0,), (num_tokens,)), most))
    assert [dict(zip(each.expert_ids, each.token_counts, strict=True)) for each in found] == expected
    assert torch.equal(torch.cat([each.hidden_ND for each in found]), hidden_ND)
    assert all(sum(each.token_counts) == len(each.hidden_ND) <= most for each in found)
