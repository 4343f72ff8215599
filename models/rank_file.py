"""Reads `tokenizer.model` in tiktoken's format: one `base64 rank` line per token, ranks 0, 1, 2, ..."""

from __future__ import annotations

import base64
import binascii
from pathlib import Path

from models.config import ModelConfig
from models.special_tokens import special_names
from models.vocabulary import Vocabulary, family_pattern
from protos.errors import BadCheckpoint

_REMEDY = "fetch the file again, or move it away to serve token ids only"


def read_rank_file(path: Path, config: ModelConfig) -> Vocabulary:
    """Read a tokenizer file; the ids its ranks leave in the vocabulary become the family's special tokens.

    Raises:
        BadCheckpoint: a line is malformed, out of order or a duplicate, a single byte has no token, or there are more
            ranks than `config.vocab_size`.
    """
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        token = _parse(path, number, line, rank=len(ranks))
        if token in ranks:
            raise BadCheckpoint(
                f"{path}:{number}: expected every token once, found {token!r} again, the token of rank "
                f"{ranks[token]}; {_REMEDY}"
            )
        if len(ranks) == config.vocab_size:
            raise BadCheckpoint(
                f"{path}:{number}: expected at most {config.vocab_size} ranks, the vocab_size of config.json, found "
                f"more; use the tokenizer that belongs to this model, or move it away to serve token ids only"
            )
        ranks[token] = len(ranks)
    missing = [value for value in range(256) if bytes([value]) not in ranks]
    if missing:
        raise BadCheckpoint(
            f"{path}: expected a token for each of the 256 bytes, found none for {len(missing)} of them, "
            f"first {missing[0]:#04x}, in {len(ranks)} ranks; {_REMEDY}"
        )
    names = special_names(config.family, config.vocab_size - len(ranks))
    specials = {name: len(ranks) + index for index, name in enumerate(names)}
    return Vocabulary(ranks=ranks, specials=specials, pattern=family_pattern(config.family))


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")
    except OSError as error:
        raise BadCheckpoint(f"{path}: expected a readable file, found {error.strerror}; {_REMEDY}") from error


def _parse(path: Path, number: int, line: bytes, rank: int) -> bytes:
    """Return the token of a line that must carry the given rank."""
    encoded, _, said = line.strip().partition(b" ")
    try:
        token, found = base64.b64decode(encoded, validate=True), int(said)
    except (binascii.Error, ValueError) as error:
        raise BadCheckpoint(
            f"{path}:{number}: expected `base64 rank` as tiktoken writes it, found {line[:40]!r} (the SentencePiece "
            f"models of Llama 1 and 2 are not supported); {_REMEDY}"
        ) from error
    if found != rank:
        raise BadCheckpoint(f"{path}:{number}: expected a token of rank {rank}, found {line[:40]!r}; {_REMEDY}")
    return token
