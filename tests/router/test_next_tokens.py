"""What follows a step: what is published, who gets a token, and what becomes of logits that cannot be used."""

from __future__ import annotations

import pytest
import torch

from router.next_tokens import PROGRESS_S, NextTokens
from router.paging.blocks import BlockChain
from router.paging.paged_kv import PagedKv, PagingPlan
from router.request import Ended, GenerationRequest, PromptDone, PromptProgress, SamplingParams, TokenChosen
from router.sampling import SamplingState
from router.scheduler import Work
from router.sequence import Sequence

VOCAB = 9


class Desk:
    """Sequences that hold pages, and the events each of them heard."""

    def __init__(self) -> None:
        self.kv = PagedKv(PagingPlan(4, None, True, 32, 0))
        self.now_s = 0.0
        self.next_tokens = NextTokens(self.kv, self._end, clock=lambda: self.now_s)
        self.heard: dict[Sequence, list] = {}

    def admit(self, num_prompt: int, **fields) -> Sequence:
        sampling = SamplingParams(temperature=0.0)
        fields = {"request_id": "one", "max_tokens": 3, "sampling": sampling} | fields
        request = GenerationRequest(prompt_ids=tuple(range(num_prompt)), **fields)
        heard: list = []
        sequence = Sequence(request, heard.append, SamplingState(request), None, len(self.heard), BlockChain(4))
        sequence.pages = self.kv.admit(sequence.ids, expect_tokens=num_prompt, chain=sequence.chain)
        self.heard[sequence] = heard
        return sequence

    def advance(self, *work: tuple[Sequence, int], logits: list[list[float]]) -> None:
        for sequence, num_tokens in work:
            if not sequence.has_left:
                self.kv.grow(sequence.pages, num_tokens)
        self.next_tokens.advance([Work(*item) for item in work], torch.tensor(logits))

    def _end(self, sequence: Sequence, event: Ended) -> None:
        self.kv.release(sequence.pages)
        sequence.has_left = True
        sequence.emit(event)


def row(best: int, value: float = 5.0) -> list[float]:
    return [value if token == best else 0.0 for token in range(VOCAB)]


def kinds(events) -> list[type]:
    return [type(event) for event in events]


def test_a_prompt_that_is_not_done_gets_no_token():
    desk = Desk()
    sequence = desk.admit(8)
    desk.advance((sequence, 5), logits=[row(3)])
    assert not desk.heard[sequence]
    desk.advance((sequence, 3), logits=[row(4)])
    assert kinds(desk.heard[sequence]) == [PromptDone, TokenChosen]
    assert sequence.ids[-1] == 4


def test_rows_belong_to_the_work_in_order_also_where_all_of_a_prompt_is_wanted():
    desk = Desk()
    first, scored, last = desk.admit(2), desk.admit(3, prompt_logprobs=0), desk.admit(4)
    logits = [row(1), *(row(2) for _ in range(3)), row(7)]
    desk.advance((first, 2), (scored, 3), (last, 4), logits=logits)
    assert [sequence.ids[-1] for sequence in (first, scored, last)] == [1, 2, 7]
    assert len(desk.heard[scored][0].logprobs) == 3


def test_a_sequence_that_left_during_the_step_is_passed_over():
    desk = Desk()
    gone, stays = desk.admit(2), desk.admit(3)
    desk._end(gone, Ended(reason="stop"))
    desk.advance((gone, 2), (stays, 3), logits=[row(1), row(2)])
    assert kinds(desk.heard[gone]) == [Ended]
    assert stays.ids[-1] == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_unusable_logits_end_their_sequence_and_no_other(bad):
    desk = Desk()
    broken, sound = desk.admit(2), desk.admit(3)
    desk.advance((broken, 2), (sound, 3), logits=[row(1, bad), row(2)])
    assert desk.heard[broken][-1].reason == "error"
    assert sound.ids[-1] == 2


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("num_computed", [8, 9], ids=["within the prompt", "at its end"])
def test_nobody_reuses_pages_of_a_sequence_with_unusable_logits(bad, num_computed):
    desk = Desk()
    broken = desk.admit(9)
    desk.advance((broken, num_computed), logits=[row(1, bad)])
    assert desk.admit(9).num_computed == desk.kv.admit(range(9), expect_tokens=9).num_cached == 0
    desk.kv.check()


def test_pages_of_sound_sequences_are_reused():
    desk = Desk()
    desk.advance((desk.admit(9), 9), logits=[row(1)])
    assert desk.kv.admit(range(9), expect_tokens=9).num_cached == 8


def test_a_prompt_of_many_steps_tells_how_much_is_computed_now_and_then():
    desk = Desk()
    sequence = desk.admit(12)
    for _ in range(5):  # two tokens a step, and 0.4 of the period
        desk.advance((sequence, 2), logits=[row(3)])
        desk.now_s += 0.4 * PROGRESS_S
    told = [PromptProgress(num_done=num_done, num_total=12) for num_done in (8,)]
    assert desk.heard[sequence] == told
    desk.advance((sequence, 2), logits=[row(3)])
    assert kinds(desk.heard[sequence]) == [PromptProgress, PromptDone, TokenChosen]


def test_a_prompt_that_takes_no_longer_than_the_period_tells_nothing():
    desk = Desk()
    sequence = desk.admit(8)
    for _ in range(3):
        desk.advance((sequence, 2), logits=[row(3)])
        desk.now_s += 0.3 * PROGRESS_S
    assert not desk.heard[sequence]


def test_what_is_computed_again_after_the_prompt_was_done_is_no_progress():
    desk = Desk()
    sequence = desk.admit(4)
    desk.advance((sequence, 4), logits=[row(3)])
    sequence.pages = desk.kv.admit(sequence.ids, expect_tokens=9, use_cached=False, chain=BlockChain(4))
    for _ in range(2):
        desk.advance((sequence, 2), logits=[row(3)])
        desk.now_s += 2 * PROGRESS_S
    assert kinds(desk.heard[sequence]) == [PromptDone, TokenChosen]
