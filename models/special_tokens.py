"""Names of the Llama families' special tokens, in the order of their ids.

The first special id follows the last rank of the tokenizer file, so a small vocabulary that keeps the first few names
speaks the same formats as a big one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal


def special_names(family: Literal["llama4", "llama"], count: int) -> tuple[str, ...]:
    """List the first names of a family, lowest id first.

    Args:
        family: "llama4", or "llama" for Llama 3.
        count: how many ids the vocabulary has after its ranks; ids after the family's last name stay nameless.

    Source: meta-llama/llama-models, models/llama4/tokenizer.py and models/llama3/tokenizer.py.
    """
    names = _llama4_names() if family == "llama4" else _llama3_names()
    return tuple(f"<|{name}|>" for name, _ in zip(names, range(count), strict=False))


def _llama4_names() -> Iterator[str]:
    yield from ("begin_of_text", "end_of_text", "fim_prefix", "fim_middle", "fim_suffix")
    yield from ("header_start", "header_end", "eom", "eot", "step")
    yield from _reserved("text_post_train_", 0, 6)
    yield from ("python_start", "python_end", "finetune_right_pad")
    yield from _reserved("text_post_train_", 8, 69)
    yield from ("image_start", "image_end", *_reserved("vision_", 0, 2), "tile_x_separator", "tile_y_separator")
    yield from (*_reserved("vision_", 2, 6), "image", *_reserved("vision_", 6, 7), "patch")
    yield from _reserved("vision_", 7, 1048)
    yield from (*_reserved("reasoning_", 0, 8), "reasoning_thinking_start", "reasoning_thinking_end")
    yield from _reserved("", 0, 904)


def _llama3_names() -> Iterator[str]:
    yield from ("begin_of_text", "end_of_text", *_reserved("", 0, 2), "finetune_right_pad_id", "step_id")
    yield from ("start_header_id", "end_header_id", "eom_id", "eot_id", "python_tag", "image")
    yield from _reserved("", 2, 246)


def _reserved(group: str, first: int, end: int) -> Iterator[str]:
    return (f"{group}reserved_special_token_{index}" for index in range(first, end))
