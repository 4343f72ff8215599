"""What prompts say. The same seed makes the same prompts, whatever order they are asked for in."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import lru_cache
from typing import Protocol

import numpy as np

from cluster.bench.traces import BLOCK_TOKENS

Prompt = list[int] | str
"""Token ids or text."""

_TEXT = """
ple time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work number night point home water room mother area money story
fact month lot right study book eye job word business issue side kind head house service friend father power hour
game line end law car city name team minute idea body back face level office door health art war history party
"""
WORDS = tuple(_TEXT.split())


class Stream(IntEnum):
    """What random numbers are drawn for: each has a sequence of its own."""

    LENGTHS = 1
    ARRIVALS = 2
    SHARED = 3
    MEASURED = 4
    WARMUP = 5
    BLOCK = 6


def rng_of(seed: int, stream: Stream, index: int = 0) -> np.random.Generator:
    """Return the random numbers of one purpose."""
    return np.random.default_rng((seed, stream, index))


class PromptSource(Protocol):
    """Makes prompts."""

    def make(self, index: int, length: int, hash_ids: Sequence[int] | None, stream: Stream) -> Prompt:
        """Return the prompt of one request.

        Args:
            index: which request; from 0.
            length: tokens it shall have; a source of texts can only come near it or ignore it.
            hash_ids: one per block of BLOCK_TOKENS; blocks of equal ids are equal. None: a fresh prompt.
            stream: MEASURED or WARMUP, whose prompts differ.
        """
        ...


class TokenPrompts:
    """Random token ids of exact length.

    Args:
        low: smallest id.
        high: largest id.
        shared_prefix: how many of a fresh prompt's tokens are alike in all of them; its last token never is.
        seed: of everything random.
    """

    def __init__(self, low: int, high: int, shared_prefix: int, seed: int) -> None:
        self._low, self._high, self._seed = low, high, seed
        self._shared = self._draw(Stream.SHARED, 0, shared_prefix)
        self._block = lru_cache(maxsize=4096)(lambda hash_id: self._draw(Stream.BLOCK, hash_id, BLOCK_TOKENS))

    def make(self, index: int, length: int, hash_ids: Sequence[int] | None, stream: Stream) -> list[int]:
        """Return token ids; see PromptSource."""
        if hash_ids is not None:
            return [token for hash_id in hash_ids for token in self._block(hash_id)][:length]
        shared = self._shared[: length - 1]
        return [*shared, *self._draw(stream, index, length - len(shared))]

    def _draw(self, stream: Stream, index: int, count: int) -> list[int]:
        rng = rng_of(self._seed, stream, index)
        ids: list[int] = rng.integers(self._low, self._high, count, endpoint=True).tolist()
        return ids


class WordPrompts:
    """Random short words, one for each token asked for: most tokenizers make about one token of each.

    Args:
        shared_prefix: how many words are alike in all prompts.
        seed: of everything random.
    """

    def __init__(self, shared_prefix: int, seed: int) -> None:
        self._numbers = TokenPrompts(0, len(WORDS) - 1, shared_prefix, seed)

    def make(self, index: int, length: int, hash_ids: Sequence[int] | None, stream: Stream) -> str:
        """Return a text; see PromptSource."""
        return " ".join(WORDS[number] for number in self._numbers.make(index, length, hash_ids, stream))


class GivenTexts:
    """Texts of the user's, in their order, from the start again after the last.

    Args:
        texts: at least one.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts

    def make(self, index: int, length: int, hash_ids: Sequence[int] | None, stream: Stream) -> str:
        """Return a text; see PromptSource."""
        return self._texts[index % len(self._texts)]
