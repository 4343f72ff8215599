"""Which rows of tokens meet which weight: a table in the device's memory, one line for each program along the tokens.

A line says where its weight lies, not which expert it is: experts come and go without a table of theirs to be kept.

    values, scale    addresses of the weight (see `weight`); 0 for a scale that there is not
    first, count     its rows of tokens; a count of 0 ends the program at once
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.gpu.weight import GpuWeight

FIELDS = 4


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
        values, scale = weight.values.data_ptr(), 0 if weight.scale is None else weight.scale.data_ptr()
        lines += [
            (values, scale, first, min(most_tokens, start + count - first))
            for first in range(start, start + count, most_tokens)
        ]
        start += count
    table = torch.tensor(lines, dtype=torch.int64).view(-1, FIELDS)
    device = weights[0].values.device
    if device.type == "cpu":
        return table
    return table.pin_memory().to(device, non_blocking=True)
