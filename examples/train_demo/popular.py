"""What people ask most, read from popular.json: names to know by heart, sentences about the language, small talk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Popular:
    """The hand-written part of the corpus."""

    core: list[str]
    """Names whose answers the model must know by heart."""
    core_types: list[str]
    """Types all of whose methods belong to the core."""
    familiar: list[str]
    """Top-level names that are practised less, but more than the rest of the library."""
    statements: dict[str, str]
    """Word of the language to the sentence that explains it."""
    small_talk: dict[str, list[str]]
    """Answer to the questions that get it."""
    tasks: dict[str, list[str]]
    """Name to what people want to do with it."""


POPULAR = Popular(**json.loads(Path(__file__).with_name("popular.json").read_text()))
