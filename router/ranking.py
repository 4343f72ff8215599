"""The order of tokens by likelihood, the same on every machine, and how many rows to rank at once.

Letter: W ranked tokens, likeliest first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CPU_BLOCK_LOGITS = 2**18
"""Logits worked on together on a CPU. Whole batches of a large vocabulary spill from the caches: 32 rows of 202,048
took 70 ms in float64 at once and 12 ms one by one (2 vCPU EPYC, one thread, torch 2.13)."""
GPU_BLOCK_LOGITS = 2**23
"""The same elsewhere: enough to fill a GPU; bounds each temporary tensor to 64 MiB."""


def row_blocks(rows: Sequence[int], logits_BV: Tensor) -> Iterator[Sequence[int]]:
    """Yield the rows in blocks that are quick to work on together.

    Args:
        rows: indices into `logits_BV`.
        logits_BV: [B, V], tells the device and the vocabulary.
    """
    budget = CPU_BLOCK_LOGITS if logits_BV.device.type == "cpu" else GPU_BLOCK_LOGITS
    size = max(1, budget // logits_BV.shape[1])
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def take_rows(logits_BV: Tensor, rows: Sequence[int]) -> Tensor:
    """Return a copy of some rows in float32 that the caller may change."""
    index_B = torch.tensor(rows, dtype=torch.int64).to(logits_BV.device, non_blocking=True)
    return logits_BV.index_select(0, index_B).float()


def likeliest(logits_BV: Tensor, width: int) -> Tensor:
    """Return the ids of the likeliest tokens: larger logit first, then lower id.

    `torch.topk` leaves the order of equal values open, and logits that were bfloat16 once are often equal. So logit
    and id become one integer, no two alike, whose order is the wanted one.

    Args:
        logits_BV: [B, V] float32.
        width: how many, in [1, V].

    Returns:
        [B, W] int64.
    """
    last_id = logits_BV.shape[1] - 1
    # Adding 0 makes -0.0 equal to 0.0. The bits of negative floats order backwards until all but the sign are flipped.
    bits_BV = (logits_BV + 0.0).view(torch.int32)
    ordered_BV = bits_BV ^ ((bits_BV >> 31) & 0x7FFFFFFF)
    lower_first_V = torch.arange(last_id, -1, -1, device=logits_BV.device)
    keys_BV = (ordered_BV.long() << 32) | lower_first_V
    is_whole = width > last_id
    keys_BW = keys_BV.sort(dim=-1, descending=True).values if is_whole else keys_BV.topk(width, dim=-1).values
    return last_id - (keys_BW & 0xFFFFFFFF)
