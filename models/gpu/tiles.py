"""Which rows of tokens meet which weight: a table in the device's memory, one line for each program along the tokens.

A line says where its weight lies, not which expert it is: experts come and go without a table of theirs to be kept.

    values, scale    addresses of the weight (see `weight`); 0 for a scale that there is not
    first, count     its rows of tokens; a count of 0: the weight, which has to be there all the same, is not read
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.gpu.weight import GpuWeight

FIELDS = 4


def addresses(weight: GpuWeight) -> tuple[int, int]:
    """Return where a weight and its scales lie; 0: there are no scales."""
    return weight.values.data_ptr(), 0 if weight.scale is None else weight.scale.data_ptr()


def tile_table(weights: Sequence[GpuWeight], token_counts: Sequence[int], most_tokens: int) -> Tensor:
    """Return the table [tiles, 4] int64 for tokens sorted by weight, on the weights' device.

    Args:
        weights: all of one form and shape.
        token_counts: rows of tokens for each of them, in their order; zeros are legal.
        most_tokens: of one tile.
    """
    lines: list[tuple[int, int, int, int]] = []
    start = 0
    for weight, count in zip(weights, token_counts, strict=True):
        lines += [
            (*addresses(weight), first, min(most_tokens, start + count - first))
            for first in range(start, start + count, most_tokens)
        ]
        start += count
    table = torch.tensor(lines, dtype=torch.int64).view(-1, FIELDS)
    device = weights[0].values.device
    if device.type == "cpu":
        return table
    return table.pin_memory().to(device, non_blocking=True)


def tile_table_of(addresses_E2: Tensor, counts_E: Tensor, most_tokens: int, num_tiles: int) -> Tensor:
    """Return `tile_table` for counts that only the device knows, filled up with tiles of no rows.

    Args:
        addresses_E2: [E, 2] int64, see `addresses`.
        counts_E: [E] int64.
        most_tokens: of one tile.
        num_tiles: lines of the table; enough.
    """
    tiles_E, stop_E = (counts_E + most_tokens - 1) // most_tokens, counts_E.cumsum(0)
    stop_tile_E = tiles_E.cumsum(0)
    tile_L = torch.arange(num_tiles, device=counts_E.device)
    expert_L = torch.searchsorted(stop_tile_E, tile_L, right=True).clamp_(max=counts_E.shape[0] - 1)
    first_L = (stop_E - counts_E)[expert_L] + (tile_L - (stop_tile_E - tiles_E)[expert_L]) * most_tokens
    # Beyond the last tile, as much as the last expert lacks: nothing.
    count_L = (stop_E[expert_L] - first_L).clamp_(0, most_tokens)
    return torch.cat((addresses_E2[expert_L], first_L[:, None], count_L[:, None]), dim=1)
