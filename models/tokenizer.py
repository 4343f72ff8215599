"""Text to token ids and back. Special tokens never come out of text: only a chat template writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import tiktoken

from models.config import ModelConfig
from models.rank_file import read_rank_file
from models.tokenizer_json import read_tokenizer_json
from models.vocabulary import Vocabulary
from protos.errors import InvalidRequest

MAX_CHARS = 400_000
"""Most characters given to tiktoken at once: above, it can panic."""
MAX_RUN = 25_000
"""Most characters of one kind, blank or not, in a row: merging one long piece is slower than linear."""

_RUN = re.compile(r"\s+|\S+")


class Tokenizer:
    """A model's vocabulary at work. Immutable, and safe to share between threads.

    Args:
        vocabulary: tokens and pattern.
        vocab_size: ids of the model [V]; an id without a token stands for no text.
    """

    def __init__(self, vocabulary: Vocabulary, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._specials = dict(vocabulary.specials)
        self._names = {token_id: name.encode() for name, token_id in self._specials.items()}
        self._bytes = [b""] * vocab_size
        for token, token_id in vocabulary.ranks.items():
            self._bytes[token_id] = token
        # No special tokens here, so that nothing in a user's text can turn into one.
        self._encoding = tiktoken.Encoding(
            "herd", pat_str=vocabulary.pattern, mergeable_ranks=dict(vocabulary.ranks), special_tokens={}
        )

    @property
    def bos_id(self) -> int | None:
        """Id of the beginning-of-text token; None where the vocabulary has none."""
        return self.special_id("<|begin_of_text|>")

    def special_id(self, name: str) -> int | None:
        """Return the id of a special token named as in "<|eot|>"; None where the vocabulary has none."""
        return self._specials.get(name)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without a beginning-of-text token.

        Names of special tokens in it are ordinary characters. A lone surrogate becomes U+FFFD.
        """
        return [token_id for part in split_long(text) for token_id in self._encoding.encode_ordinary(part)]

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Return the text of ids; bytes that are not UTF-8 become U+FFFD.

        Args:
            ids: each in [0, vocab_size).
            skip_special: leave special tokens out; False writes their names.

        Raises:
            InvalidRequest: an id is out of range.
        """
        if skip_special:
            parts = [self.token_bytes(token_id) for token_id in ids]
        else:
            parts = [self._names.get(token_id) or self.token_bytes(token_id) for token_id in ids]
        return b"".join(parts).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes a token adds to the text: none for a special one, perhaps half a character.

        Raises:
            InvalidRequest: the id is out of range.
        """
        if not 0 <= token_id < self.vocab_size:
            raise InvalidRequest(
                f"expected token ids from 0 to {self.vocab_size - 1}, found {token_id}; use this model's tokenizer"
            )
        return self._bytes[token_id]


def load_tokenizer(folder: Path, config: ModelConfig) -> Tokenizer | None:
    """Load a model folder's `tokenizer.model` or else its `tokenizer.json`; None where it has neither.

    Raises:
        BadCheckpoint: the file is corrupt, of an unsupported kind, or larger than the model's vocabulary.
    """
    readers = {"tokenizer.model": read_rank_file, "tokenizer.json": read_tokenizer_json}
    for name, read in readers.items():
        if (folder / name).exists():
            return Tokenizer(read(folder / name, config), config.vocab_size)
    return None


def split_long(text: str, max_chars: int = MAX_CHARS, max_run: int = MAX_RUN) -> Iterator[str]:
    """Yield a text in parts: none longer than max_chars, none with a run longer than max_run.

    A run is a stretch of blanks or a stretch of anything else. Texts within both limits come back whole.

    Source: meta-llama/llama-models, models/llama4/tokenizer.py; the cuts are part of the tokenizer, since nothing is
    merged across them.
    """
    for start in range(0, len(text), max_chars):
        yield from _split_runs(text[start : start + max_chars], max_run)


def _split_runs(text: str, max_run: int) -> Iterator[str]:
    start = 0
    for run in _RUN.finditer(text) if len(text) > max_run else ():
        for cut in range(run.start() + max_run, run.end(), max_run):
            yield text[start:cut]
            start = cut
    yield text[start:]
