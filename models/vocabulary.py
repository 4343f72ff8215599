"""What a tokenizer file says, whatever its format, and how text is cut before byte pairs are merged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

_CONTRACTION = r"(?i:'(?:s|t|re|ve|m|ll|d))"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEFORE_WORD = r"[^\r\n\p{L}\p{N}]?"
# A line break takes the blanks before it; a run of blanks leaves its last one to the word that follows.
_BLANKS = (r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+")

LLAMA3_PATTERN = "|".join(
    (_CONTRACTION, rf"{_BEFORE_WORD}\p{{L}}+", r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n]*", *_BLANKS)
)
"""Pieces of Llama 3 text. Source: the language of `pat_str` in Meta's llama3/tokenizer.py."""

LLAMA4_PATTERN = "|".join(
    (
        # A word ends where a capital follows a small letter; marks belong to the letter before them.
        rf"{_BEFORE_WORD}{_UPPER}*{_LOWER}+{_CONTRACTION}?",
        rf"{_BEFORE_WORD}{_UPPER}+{_LOWER}*{_CONTRACTION}?",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        *_BLANKS,
    )
)
"""Pieces of Llama 4 text. Source: the language of `O200K_PATTERN` in Meta's llama4/tokenizer.py."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    """Tokens of one model; no id is used twice."""

    ranks: Mapping[bytes, int]
    """Id of each ordinary token, all 256 single bytes among them; the pair with the lowest id is merged first."""
    specials: Mapping[str, int]
    """Id of each special token by its name, as in "<|eot|>"."""
    pattern: str
    """Regular expression whose matches are merged apart from each other."""


def family_pattern(family: Literal["llama4", "llama"]) -> str:
    """Return how a family cuts text."""
    return LLAMA4_PATTERN if family == "llama4" else LLAMA3_PATTERN
