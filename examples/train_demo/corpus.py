"""Everything the training reads, put together once: documents as one stream of ids, chat turns with their weights."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import tiktoken
import torch
from torch import Tensor

from examples.train_demo import questions
from examples.train_demo.documents import read_documents, read_entries, split_held_out
from examples.train_demo.questions import Turn, draw_conversation, make_turns
from examples.train_demo.vocabulary import encode_turns, load_vocabulary, special_id, train_vocabulary

IGNORED = -100
"""Target of a position that has no loss."""
MISSES = 3
"""Conversations that may find no room before a batch counts as full."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """The corpus as text."""

    training: dict[str, str]
    """Document name to text."""
    held_out: dict[str, str]
    """Documents the model never sees."""
    turns: list[Turn]


def read_texts() -> Texts:
    """Read the corpus from the running Python."""
    entries = read_entries()
    core = set(questions.core_names(entries))
    documents = read_documents(entries)
    training, held_out = split_held_out(documents, keep={entry.document for entry in entries if entry.name in core})
    return Texts(training=training, held_out=held_out, turns=make_turns(entries, set(held_out)))


def ensure_vocabulary(texts: Texts, file: Path) -> tiktoken.Encoding:
    """Open the tokenizer file; train it first where there is none."""
    if not file.exists():
        answers = [f"{turn.questions[0]}\n\n{turn.answer}" for turn in texts.turns if turn.weight >= 1]
        train_vocabulary([*texts.training.values(), *answers], file)
    return load_vocabulary(file)


def encode_stream(documents: Iterable[str], encoding: tiktoken.Encoding) -> Tensor:
    """Join documents to one stream of ids, each between begin_of_text and end_of_text."""
    begin, end = [special_id("begin_of_text")], [special_id("end_of_text")]
    return torch.tensor([i for text in documents for i in begin + encoding.encode_ordinary(text) + end])


class Batches:
    """Draws training batches. What step n draws depends on the seed and n only, so a resumed run sees the same data."""

    def __init__(self, texts: Texts, encoding: tiktoken.Encoding, seed: int) -> None:
        self._stream = encode_stream(texts.training.values(), encoding)
        self._encoding = encoding
        self._turns = texts.turns
        self._cumulative = list(itertools.accumulate(turn.weight for turn in texts.turns))
        self._seed = seed

    def documents(self, step: int, rows: int, length: int) -> tuple[Tensor, Tensor]:
        """Cut `rows` random windows out of the stream; returns inputs and targets, both [rows, length] int64."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + step)
        starts = torch.randint(len(self._stream) - length, (rows,), generator=generator)
        windows = self._stream[starts[:, None] + torch.arange(length + 1)]
        return windows[:, :-1], windows[:, 1:]

    def conversations(self, step: int, rows: int, length: int, num_turns: int) -> tuple[Tensor, Tensor]:
        """Draw conversations and pack them into rows; returns inputs and targets, both [rows, length] int64.

        The first of a row starts at position 0, as in serving. The others start with begin_of_text in its midst: so
        the shapes stay the same from step to step, which the CPU's matrix kernels want, and little is padding.

        Args:
            step: number of the training step.
            rows: rows of the batch.
            length: tokens per row.
            num_turns: most turns of one conversation; drawn evenly from half of it upwards.
        """
        rng = random.Random(f"{self._seed} {step} {num_turns}")
        packed: list[tuple[list[int], list[bool]]] = [([], []) for _ in range(rows)]
        misses = 0
        while misses < MISSES:
            count = rng.randint((num_turns + 1) // 2, num_turns)
            ids, answered = encode_turns(draw_conversation(self._turns, self._cumulative, count, rng), self._encoding)
            row = next((row for row in packed if len(row[0]) + min(len(ids), length) <= length + 1), None)
            if row is None:
                misses += 1
            else:
                row[0].extend(ids[:length])
                row[1].extend(answered[:length])
        return _pad(packed, length)


def _pad(rows: list[tuple[list[int], list[bool]]], length: int) -> tuple[Tensor, Tensor]:
    inputs = torch.full((len(rows), length), special_id("finetune_right_pad"))
    targets = torch.full((len(rows), length), IGNORED)
    for i, (ids, answered) in enumerate(rows):
        inputs[i, : len(ids) - 1] = torch.tensor(ids[:-1])
        targets[i, : len(ids) - 1] = torch.tensor(ids[1:]).masked_fill(~torch.tensor(answered[1:]), IGNORED)
    return inputs, targets
