"""What follows a forward pass: every sequence whose ids are all in the cache gets its next token."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from protos import errors
from router.logprobs import prompt_logprobs, token_logprobs
from router.paging.paged_kv import PagedKv
from router.request import Ended, PromptDone, PromptProgress, TokenChosen
from router.sampling import draft_tokens, settle_tokens
from router.scheduler import Work
from router.sequence import Sequence

PROGRESS_S = 0.5
"""Seconds between two reports on a prompt that takes many steps, and from its first step to the first report."""

End = Callable[[Sequence, Ended], None]
"""Takes a sequence that has ended off the engine, then emits the event."""


@dataclass(frozen=True, slots=True)
class _Piece:
    """What a step computed of a sequence that is still there."""

    sequence: Sequence
    num_tokens: int
    rows: slice
    """Of the logits."""
    chooses: bool
    """All its ids are in the cache after it."""


def _pieces(work: SequenceOf[Work]) -> Iterator[_Piece]:
    row = 0
    for item in work:
        sequence = item.sequence
        first, row = row, row + (item.num_tokens if sequence.wants_prompt_logits else 1)
        if not sequence.has_left:
            chooses = sequence.num_uncomputed == item.num_tokens
            yield _Piece(sequence, item.num_tokens, slice(first, row), chooses)


def _read(*rows: Tensor) -> list[list[float]]:
    """Return rows of numbers of any lengths, with one wait for the device."""
    numbers = torch.cat([row.double() for row in rows]).tolist()
    found, start = [], 0
    for row in rows:
        found.append(numbers[start : start + len(row)])
        start += len(row)
    return found


class NextTokens:
    """Counts what steps put into the cache, chooses tokens and emits them.

    Args:
        kv: whose pages the steps fill.
        publishes: whether full pages are kept for prompts that begin alike.
        end: called for sequences that end by themselves.
        clock: seconds, monotonic.
    """

    def __init__(
        self, kv: PagedKv, end: End, *, publishes: bool = True, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.num_chosen = 0
        """Tokens emitted so far."""
        self._kv = kv
        self._publishes = publishes
        self._end = end
        self._clock = clock

    def advance(self, work: SequenceOf[Work], logits_BV: Tensor, *, on_read: Callable[[], None] = lambda: None) -> None:
        """Take note of a computed step, and choose the next token of every sequence past its prompt.

        Args:
            work: of the step. Sequences that have left meanwhile are passed over.
            logits_BV: for each piece of work in turn its last row, or all of them for prompt logprobs.
            on_read: called when they have been computed, whatever the device.
        """
        pieces = [*_pieces(work)]
        choosing = [piece for piece in pieces if piece.chooses]
        rows = [piece.rows.stop - 1 for piece in choosing]
        # Usually every row chooses: to copy them would cost as much as to choose.
        chosen_BV = logits_BV if len(rows) == len(logits_BV) else logits_BV[rows]
        draft_3B = draft_tokens(chosen_BV, [piece.sequence.sampling for piece in choosing])
        # The one read from the device: until here nobody waits for the step.
        finite, *draft = _read(logits_BV.amax(dim=-1).isfinite(), *draft_3B)
        on_read()
        for piece in pieces:
            sequence = piece.sequence
            if sequence.wants_prompt_logits and not self._took_prompt_logprobs(sequence, logits_BV[piece.rows]):
                continue
            assert sequence.pages is not None
            # A sequence whose logits are unusable has keys and values that are: nobody else may come to read them.
            publish = self._publishes and all(finite[piece.rows])
            self._kv.advance(sequence.pages, sequence.ids, piece.num_tokens, publish=publish)
            if sequence.num_uncomputed:
                self._tell_progress(sequence)
            elif not sequence.prompt_is_done:
                self._emit_prompt_done(sequence)
        self._choose([piece.sequence for piece in choosing], chosen_BV, draft)

    def _choose(self, sequences: SequenceOf[Sequence], logits_BV: Tensor, draft: SequenceOf[SequenceOf[float]]) -> None:
        """Emit the tokens that were drafted; of sequences that have left, nothing."""
        if left := [row for row, sequence in enumerate(sequences) if sequence.has_left]:
            self._choose_without(left, sequences, logits_BV)
            return
        if not sequences:
            return
        try:
            token_ids = settle_tokens(draft, logits_BV, [sequence.sampling for sequence in sequences])
        except errors.InternalError as error:
            broken = [int(row) for row in error.metadata["rows"].split(",")]
            for row in broken:
                self._end(sequences[row], Ended(reason="error", error=error))
            self._choose_without(broken, sequences, logits_BV)
            return
        logprobs = token_logprobs(logits_BV, token_ids, [sequence.request.logprobs for sequence in sequences])
        for sequence, token_id, logprob in zip(sequences, token_ids, logprobs, strict=True):
            if token_id in sequence.request.stop_ids:
                self._end(sequence, Ended(reason="stop"))
                continue
            sequence.ids.append(token_id)
            sequence.sampling.append(token_id)
            self.num_chosen += 1
            sequence.emit(TokenChosen(token_id=token_id, logprob=logprob))
            if sequence.num_output == sequence.request.max_tokens:
                self._end(sequence, Ended(reason="length"))

    def _choose_without(self, gone: SequenceOf[int], sequences: SequenceOf[Sequence], logits_BV: Tensor) -> None:
        """Choose for all but some."""
        rows = [row for row in range(len(sequences)) if row not in gone]
        kept, kept_BV = [sequences[row] for row in rows], logits_BV[rows]
        self._choose(kept, kept_BV, draft_tokens(kept_BV, [sequence.sampling for sequence in kept]).tolist())

    def _took_prompt_logprobs(self, sequence: Sequence, logits_TV: Tensor) -> bool:
        """Report on a chunk of the prompt; end the sequence and return False if its logits are unusable."""
        request = sequence.request
        num_top = request.prompt_logprobs or 0
        try:
            reports = prompt_logprobs(logits_TV, request.prompt_ids, sequence.num_computed, num_top)
        except errors.InternalError as error:
            self._end(sequence, Ended(reason="error", error=error))
            return False
        sequence.prompt_logprobs.extend(reports)
        return True

    def _tell_progress(self, sequence: Sequence) -> None:
        """Tell how much of a prompt is computed, now and then."""
        if sequence.prompt_is_done:
            return
        now_s = self._clock()
        is_due = sequence.progress_due_s is not None and now_s >= sequence.progress_due_s
        if is_due:
            sequence.emit(PromptProgress(num_done=sequence.num_computed, num_total=len(sequence.request.prompt_ids)))
        if is_due or sequence.progress_due_s is None:
            sequence.progress_due_s = now_s + PROGRESS_S

    def _emit_prompt_done(self, sequence: Sequence) -> None:
        wanted = sequence.wants_prompt_logits
        sequence.prompt_is_done = True
        logprobs = tuple(sequence.prompt_logprobs) if wanted else None
        sequence.emit(PromptDone(num_cached=sequence.num_cached or 0, logprobs=logprobs))
