"""Choosing the next token of each sequence.

Not here: what a request may ask for (sampling_bounds.py), the kept set and the draw (candidates.py), penalties
(penalties.py), random numbers (seed.py) and the probabilities that are reported (logprobs.py).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from protos.errors import InternalError
from router.candidates import Rules, draw, keep_candidates
from router.penalties import SeenTokens, has_penalties, penalise
from router.ranking import row_blocks, take_rows
from router.request import GenerationRequest
from router.seed import uniform


class SamplingState:
    """What choosing a sequence's next token needs to know of it.

    Args:
        request: its prompt and parameters, already checked.
        num_replayed: last tokens of the prompt that another replica had generated before this one took over. They
            count as output, so that presence and frequency penalties go on as they were.
    """

    __slots__ = ("params", "position", "seen")

    def __init__(self, request: GenerationRequest, *, num_replayed: int = 0) -> None:
        prompt_ids = request.prompt_ids
        num_given = len(prompt_ids) - num_replayed
        self.params = request.sampling
        self.position = len(prompt_ids)
        """Of the next token, counted from the first token of the prompt."""
        self.seen: SeenTokens | None = None
        """Kept only where penalties need it."""
        if has_penalties(self.params):
            self.seen = SeenTokens(prompt_ids[:num_given], prompt_ids[num_given:])

    def append(self, token_id: int) -> None:
        """Take note of the token that was chosen for `position`."""
        self.position += 1
        if self.seen is not None:
            self.seen.append(token_id)

    @property
    def is_plain_greedy(self) -> bool:
        """Tell whether the likeliest token under the model itself is the choice."""
        return self.params.temperature == 0 and self.seen is None


def choose_tokens(logits_BV: Tensor, states: Sequence[SamplingState]) -> list[int]:
    """Choose the next token of each sequence; the states stay as they are.

    Penalties first (`penalise`), then temperature and the kept set (`keep_candidates`), then a draw with the random
    number of (seed, position). At temperature 0 it is the likeliest token after penalties, of equals the lowest id.
    A row's choice depends on its own logits and state alone.

    Args:
        logits_BV: [B, V] of any float dtype, left unchanged.
        states: per row.

    Raises:
        InternalError: rows hold NaN, +inf or nothing but -inf. `metadata["rows"]` lists them, comma-separated; the
            other rows can be chosen in a second call without them.

    Cost: one read from the device; a second where the choice lies beyond the first HEAD_WIDTH tokens of a row.
    """
    return settle_tokens(draft_tokens(logits_BV, states).tolist(), logits_BV, states)


@torch.inference_mode()
def draft_tokens(logits_BV: Tensor, states: Sequence[SamplingState]) -> Tensor:
    """Begin `choose_tokens`, without a read from the device.

    Returns:
        [3, B] float64 for `settle_tokens`: each row's id, its largest logit, and whether the id is final.
    """
    assert logits_BV.shape[0] == len(states), f"{logits_BV.shape[0]} rows of logits for {len(states)} sequences"
    best_B, ids_B = logits_BV.max(dim=-1)  # of equal values torch promises the first
    is_final_B = torch.ones_like(ids_B, dtype=torch.bool)
    sampled = [row for row, state in enumerate(states) if not state.is_plain_greedy]
    for rows in row_blocks(sampled, logits_BV):
        index_B = torch.tensor(rows, dtype=torch.int64).to(logits_BV.device, non_blocking=True)
        ids_B[index_B], is_final_B[index_B] = _sample(logits_BV, states, rows, rank_all=False)
    return torch.stack([ids_B.double(), best_B.double(), is_final_B.double()])


@torch.inference_mode()
def settle_tokens(draft: Sequence[Sequence[float]], logits_BV: Tensor, states: Sequence[SamplingState]) -> list[int]:
    """End `choose_tokens`.

    Args:
        draft: what `draft_tokens` returned, as numbers.
        logits_BV: as there.
        states: as there.

    Raises:
        InternalError: as `choose_tokens`.
    """
    ids, bests, finals = draft
    _check_finite(bests)
    chosen = [int(token_id) for token_id in ids]
    unsettled = [row for row, is_final in enumerate(finals) if not is_final]
    for rows in row_blocks(unsettled, logits_BV):
        ids_B, _ = _sample(logits_BV, states, rows, rank_all=True)
        for row, token_id in zip(rows, ids_B.tolist(), strict=True):
            chosen[row] = token_id
    return chosen


def _sample(
    logits_BV: Tensor, states: Sequence[SamplingState], rows: Sequence[int], *, rank_all: bool
) -> tuple[Tensor, Tensor]:
    """Return the ids [rows] int64 chosen for some rows, and whether each is final [rows] bool."""
    block_BV = take_rows(logits_BV, rows)
    block = [states[row] for row in rows]
    params = [state.params for state in block]
    penalise(block_BV, [state.seen for state in block], params)
    vocab_size = logits_BV.shape[1]
    rules = Rules.of(params, vocab_size, logits_BV.device)
    candidates = keep_candidates(block_BV, rules, vocab_size if rank_all else rules.width)
    return draw(candidates, [uniform(state.params.seed, state.position) for state in block])


def _check_finite(bests: Sequence[float]) -> None:
    """Refuse rows whose largest logit is NaN or infinite: softmax has no answer there."""
    wrong = [row for row, best in enumerate(bests) if not math.isfinite(best)]
    if wrong:
        found = ", ".join(f"{bests[row]} in row {row}" for row in wrong)
        raise InternalError(
            f"expected a finite largest logit in every row, found {found}; end these sequences, and look for a "
            "damaged checkpoint or an overflow in the model",
            metadata={"rows": ",".join(map(str, wrong))},
        )
