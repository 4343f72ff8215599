"""Reads a Hugging Face `tokenizer.json` that was converted from a tiktoken file, as those of Llama 3 and 4 were."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from models.config import ModelConfig
from models.vocabulary import Vocabulary
from protos.errors import BadCheckpoint


def read_tokenizer_json(path: Path, config: ModelConfig) -> Vocabulary:
    """Read byte-level BPE tokens, their ids and the pattern; added tokens become the special tokens.

    Raises:
        BadCheckpoint: the file is not JSON, describes another kind of tokenizer, has tokens beyond
            `config.vocab_size`, or merges pairs in another way than tiktoken would.
    """
    try:
        data = json.loads(path.read_bytes())
        pattern = _pattern(data)
        specials = {str(token["content"]): int(token["id"]) for token in data["added_tokens"]}
        names = {name: int(rank) for name, rank in data["model"]["vocab"].items() if name not in specials}
        byte_of = _byte_of_character()
        ranks = {bytes(byte_of[character] for character in name): rank for name, rank in names.items()}
        merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in data["model"]["merges"]]
        merged_ranks = [names[left + right] for left, right in merges]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unsupported(path, f"{type(error).__name__}: {error}") from error
    _check_ids(path, [*ranks.values(), *specials.values()])
    _check_ranks(path, ranks, merged_ranks, config.vocab_size)
    # Llama 3.2 Vision numbers its image token past the vocabulary; no text model can be given it.
    specials = {name: token_id for name, token_id in specials.items() if token_id < config.vocab_size}
    return Vocabulary(ranks=ranks, specials=specials, pattern=pattern)


def _pattern(data: Mapping[str, Any]) -> str:
    """Return the regular expression of `Split` followed by `ByteLevel`; any other pipeline is a ValueError."""
    split, byte_level = data["pre_tokenizer"]["pretokenizers"]
    kinds = (data["model"]["type"], split["type"], split["behavior"], byte_level["type"])
    if kinds != ("BPE", "Split", "Isolated", "ByteLevel") or split["invert"] or byte_level["add_prefix_space"]:
        raise ValueError(f"a pipeline of {kinds}")
    if byte_level["use_regex"] or data["normalizer"] is not None:
        raise ValueError("a second split or a normalizer")
    return str(split["pattern"]["Regex"])


def _check_ids(path: Path, ids: Sequence[int]) -> None:
    if min(ids, default=0) < 0 or len(set(ids)) != len(ids):
        raise _unsupported(path, "negative or repeated token ids")


def _check_ranks(path: Path, ranks: Mapping[bytes, int], merged_ranks: Sequence[int], vocab_size: int) -> None:
    """Refuse what tiktoken would not reproduce: it merges any two tokens that make a third, lowest rank first."""
    if max(ranks.values(), default=0) >= vocab_size:
        raise BadCheckpoint(
            f"{path}: expected token ids below {vocab_size}, the vocab_size of config.json, found "
            f"{max(ranks.values())}; use the tokenizer that belongs to this model"
        )
    if any(bytes([value]) not in ranks for value in range(256)):
        raise _unsupported(path, "a vocabulary without a token for each of the 256 bytes")
    every_merge = sorted(
        rank for token, rank in ranks.items() for cut in range(1, len(token)) if _both(ranks, token, cut)
    )
    if every_merge != merged_ranks:
        raise _unsupported(path, "merges that are not all pairs of tokens in the order of their ids")


def _both(ranks: Mapping[bytes, int], token: bytes, cut: int) -> bool:
    return token[:cut] in ranks and token[cut:] in ranks


def _unsupported(path: Path, found: str) -> BadCheckpoint:
    return BadCheckpoint(
        f"{path}: expected a byte-level BPE converted from a tiktoken file, found {found}; "
        f"put the model's tokenizer.model beside it, or move it away to serve token ids only"
    )


def _byte_of_character() -> dict[str, int]:
    """Return which byte each printable stand-in means: the byte itself where it prints, else 256, 257, ... in turn."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + index): value for index, value in enumerate(others)}
