"""What a model folder's generation_config.json says: sampling defaults, and tokens that start and end a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.json_fields import JsonFields

GENERATION_CONFIG = "generation_config.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationDefaults:
    """How a model's makers sample from it, for requests that do not say."""

    temperature: float = 1.0
    """At least 0; 0 picks the likeliest token."""
    top_p: float = 1.0
    """In (0, 1]; 1 is off."""
    top_k: int | None = None
    """At least 1; None: off."""


def generation_fields(folder: Path) -> JsonFields | None:
    """Return the fields of a folder's generation_config.json; None: there is no such file."""
    file = folder / GENERATION_CONFIG
    return JsonFields.load(file) if file.is_file() else None


def load_generation_defaults(folder: Path) -> GenerationDefaults:
    """Return a folder's sampling defaults; without a generation_config.json, plain sampling.

    `do_sample` is not read: files that were saved without a thought say false.

    Raises:
        BadConfig: the file is not JSON, or a value is out of range.
    """
    fields = generation_fields(folder)
    if fields is None:
        return GenerationDefaults()
    top_p = fields.number("top_p", 1.0)
    if top_p > 1:
        raise fields.fail("top_p", "a number in (0, 1]")
    return GenerationDefaults(
        temperature=fields.number("temperature", 1.0, least=0.0),
        top_p=top_p,
        top_k=fields.optional_integer("top_k", least=0) or None,
    )
