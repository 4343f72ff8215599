"""Choosing the next token of each sequence, and checking how a request wants it chosen.

Not here: the kept set and the draw (candidates.py), penalties (penalties.py), random numbers (seed.py) and the
probabilities that are reported (logprobs.py).
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protos.errors import InternalError, InvalidRequest
from router.candidates import Rules, draw, keep_candidates
from router.penalties import SeenTokens, has_penalties, penalise
from router.ranking import row_blocks, take_rows
from router.request import GenerationRequest, SamplingParams
from router.seed import NUM_SEEDS, uniform


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What a field of SamplingParams may be."""

    field: str
    interval: str
    low: float
    high: float
    advice: str
    low_is_allowed: bool = True
    is_whole: bool = False

    def allow(self, value: object) -> bool:
        """Tell whether the field may have this value. NaN fails every comparison."""
        if isinstance(value, bool) or not isinstance(value, int if self.is_whole else (int, float)):
            return False
        return self.low <= value <= self.high and (self.low_is_allowed or value != self.low)


_BOUNDS = (
    _Bounds("temperature", "[0, 100]", 0, 100, "use 0 for the likeliest token, 1 for the model's own probabilities"),
    _Bounds("top_k", "[0, inf)", 0, math.inf, "use 0 to keep all tokens", is_whole=True),
    _Bounds("top_p", "(0, 1]", 0, 1, "use 1 to keep all tokens", low_is_allowed=False),
    _Bounds("min_p", "[0, 1]", 0, 1, "use 0 to keep all tokens"),
    _Bounds("repetition_penalty", "(0, 100]", 0, 100, "use 1 for no penalty", low_is_allowed=False),
    _Bounds("presence_penalty", "[-2, 2]", -2, 2, "use 0 for no penalty"),
    _Bounds("frequency_penalty", "[-2, 2]", -2, 2, "use 0 for no penalty"),
    _Bounds("seed", "[0, 2**64)", 0, NUM_SEEDS - 1, "use any number in that range, or leave it out", is_whole=True),
)


def check_sampling(params: SamplingParams) -> None:
    """Refuse parameters no token can be chosen by.

    Raises:
        InvalidRequest: a field is of the wrong type, not a number, or out of range; all such fields are named.
    """
    wrong = [
        f"{bounds.field}: expected {'a whole number' if bounds.is_whole else 'a number'} in {bounds.interval}, "
        f"found {reprlib.repr(getattr(params, bounds.field))}; {bounds.advice}"
        for bounds in _BOUNDS
        if not bounds.allow(getattr(params, bounds.field))
    ]
    if wrong:
        raise InvalidRequest(". ".join(wrong))


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


@torch.inference_mode()
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
    assert logits_BV.shape[0] == len(states), f"{logits_BV.shape[0]} rows of logits for {len(states)} sequences"
    best_B, ids_B = logits_BV.max(dim=-1)  # of equal values torch promises the first
    is_final_B = torch.ones_like(ids_B, dtype=torch.bool)
    sampled = [row for row, state in enumerate(states) if not state.is_plain_greedy]
    for rows in row_blocks(sampled, logits_BV):
        index_B = torch.tensor(rows, dtype=torch.int64).to(logits_BV.device, non_blocking=True)
        ids_B[index_B], is_final_B[index_B] = _sample(logits_BV, states, rows, rank_all=False)

    ids, bests, finals = torch.stack([ids_B.double(), best_B.double(), is_final_B.double()]).tolist()
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
