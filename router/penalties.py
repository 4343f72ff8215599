"""Penalties on tokens that a sequence has already seen.

Letter: U tokens seen, each once.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from router.request import SamplingParams

LARGEST_LOGIT = torch.finfo(torch.float32).max


class SeenTokens:
    """The distinct tokens of a prompt and its output, and how often the output has each.

    Args:
        prompt_ids: tokens that were given: penalised for repetition only.
        output_ids: tokens that were generated.
    """

    __slots__ = ("_counts_U", "_ids_U", "_index")

    def __init__(self, prompt_ids: Iterable[int], output_ids: Iterable[int] = ()) -> None:
        self._index = {token_id: index for index, token_id in enumerate(dict.fromkeys(prompt_ids))}
        self._ids_U = array("q", self._index)
        self._counts_U = array("q", bytes(8 * len(self._index)))
        for token_id in output_ids:
            self.append(token_id)

    def append(self, token_id: int) -> None:
        """Count one more token of the output."""
        index = self._index.setdefault(token_id, len(self._ids_U))
        if index == len(self._ids_U):
            self._ids_U.append(token_id)
            self._counts_U.append(0)
        self._counts_U[index] += 1

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """Return copies: ids [U] int64 and how often the output has each [U] int64, 0 for the prompt's."""
        return np.array(self._ids_U, dtype=np.int64), np.array(self._counts_U, dtype=np.int64)


def has_penalties(params: SamplingParams) -> bool:
    """Tell whether seen tokens matter."""
    return params.repetition_penalty != 1 or params.presence_penalty != 0 or params.frequency_penalty != 0


def penalise(logits_BV: Tensor, seen: Sequence[SeenTokens | None], params: Sequence[SamplingParams]) -> None:
    """Change the logits of seen tokens in place: first for repetition, then for frequency and presence.

        repetition r, prompt and output     z > 0: z / r, else z * r
        frequency f, output                 z - f * times generated
        presence p, output                  z - p

    Args:
        logits_BV: [B, V] float32, contiguous.
        seen: per row; None leaves the row as it is.
        params: per row.

    Source: transformers 5.23 `RepetitionPenaltyLogitsProcessor`; OpenAI API reference, "frequency and presence
    penalties"; order as vLLM 0.22 documents for `vllm.v1.sample.sampler.Sampler`, step 6.
    """
    places: list[np.ndarray] = []
    factors: list[np.ndarray] = []
    for row, (tokens, own) in enumerate(zip(seen, params, strict=True)):
        if tokens is None:
            continue
        ids_U, counts_U = tokens.table()
        subtract_U = own.frequency_penalty * counts_U + own.presence_penalty * (counts_U > 0)
        places.append(row * logits_BV.shape[1] + ids_U)
        factors.append(np.stack([np.full(len(ids_U), own.repetition_penalty), subtract_U]).astype(np.float32))
    if not places:
        return
    places_U = torch.from_numpy(np.concatenate(places)).to(logits_BV.device, non_blocking=True)
    factors_2U = torch.from_numpy(np.concatenate(factors, axis=1)).to(logits_BV.device, non_blocking=True)
    repetition_U, subtracted_U = factors_2U.unbind()
    flat = logits_BV.view(-1)
    seen_U = flat.index_select(0, places_U)
    # A repetition penalty near 0 can divide a logit past what float32 holds; infinite logits have no probabilities.
    repeated_U = torch.where(seen_U > 0, seen_U / repetition_U, seen_U * repetition_U).clamp_(max=LARGEST_LOGIT)
    flat.index_copy_(0, places_U, repeated_U - subtracted_U)
