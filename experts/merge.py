"""Joins dispatches of one layer into one batch sorted by expert, and splits the batch's outputs back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from experts.work import Work


@dataclass(frozen=True, slots=True)
class MergedBatch:
    """Tokens of several dispatches, sorted by expert and, within one, in the dispatches' order."""

    expert_ids: tuple[int, ...]
    token_counts: tuple[int, ...]
    hidden_ND: Tensor
    owners: tuple[int, ...]
    """For each run of rows that stayed together: the index of its dispatch."""
    lengths: tuple[int, ...]
    """For each such run: its rows; they sum to N."""


def merge(works: Sequence[Work]) -> MergedBatch:
    """Return one batch with every token of the dispatches, on one device: a GPU if any of them are on one.

    Cost: copies the tokens unless there is one dispatch.
    """
    if len(works) == 1:
        (work,) = works
        return MergedBatch(work.expert_ids, work.token_counts, work.hidden_ND, (0,), (work.num_tokens,))
    runs = sorted(
        (expert, owner, rows_nD)
        for owner, (work, hidden_ND) in enumerate(zip(works, _on_one_device(works), strict=True))
        for expert, rows_nD in zip(work.expert_ids, hidden_ND.split(list(work.token_counts)), strict=True)
    )
    counts: dict[int, int] = {}
    for expert, _, rows_nD in runs:
        counts[expert] = counts.get(expert, 0) + rows_nD.shape[0]
    return MergedBatch(
        expert_ids=tuple(counts),
        token_counts=tuple(counts.values()),
        hidden_ND=torch.cat([rows_nD for _, _, rows_nD in runs]),
        owners=tuple(owner for _, owner, _ in runs),
        lengths=tuple(rows_nD.shape[0] for _, _, rows_nD in runs),
    )


def _on_one_device(works: Sequence[Work]) -> list[Tensor]:
    """Return the tokens of each dispatch, where all came the same way as they are: the usual case."""
    devices = {work.hidden_ND.device for work in works}
    device = next((each for each in devices if each.type != "cpu"), torch.device("cpu"))
    return [work.hidden_ND.to(device) for work in works]


def split(batch: MergedBatch, outputs_ND: Tensor) -> list[Tensor]:
    """Return each dispatch's outputs, in the order its tokens came. Inverse of `merge`."""
    if len(batch.owners) == 1:
        return [outputs_ND]
    parts: dict[int, list[Tensor]] = {}
    for owner, rows_nD in zip(batch.owners, outputs_ND.split(list(batch.lengths)), strict=True):
        parts.setdefault(owner, []).append(rows_nD)
    return [torch.cat(rows) if len(rows) > 1 else rows[0] for _, rows in sorted(parts.items())]
