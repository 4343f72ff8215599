"""How kernels are cut, by the form of the weights and the tokens that one of them meets at most.

Few tokens: the weights' bytes are all that counts. So many programs that every part of the card reads, each with some
steps of weights on their way; all tokens in one tile, so that nothing is read twice; and no more warps than lie along
the outputs, because warps beside each other along the tokens would each make numbers of the same codes. Many tokens:
tensor cores count; large tiles, each number read from shared memory as seldom as registers allow.

What is here was chosen by counting bytes, registers, shared memory and instructions for an H100 (132 processors with
227 KiB each). Where a card was tuned, `tuned/CARD.json` says better: `benchmarks/tune_gpu.py` writes it.
"""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Literal

import torch

from models.gpu.product import Launch
from models.gpu.weight import Form

Product = Literal["gate_up", "down"]
TUNED = Path(__file__).resolve().parent / "tuned"


def gate_up_launch(form: Form, most_tokens: int) -> Launch:
    """Return how to cut the product with gate and up, which holds a tile of both.

    Args:
        form: of the weights.
        most_tokens: that one weight meets.
    """
    return _tuned_or("gate_up", form, _gate_up(form, most_tokens))


def down_launch(form: Form, most_tokens: int) -> Launch:
    """Return how to cut the product with one weight. Arguments as for `gate_up_launch`."""
    return _tuned_or("down", form, _down(form, most_tokens))


def _gate_up(form: Form, most_tokens: int) -> Launch:
    if most_tokens <= 16:
        return Launch(tokens=16, outputs=32, warps=4 if form == "plain" else 2, stages=5 if form == "int4" else 4)
    if most_tokens <= 32:
        return Launch(tokens=32, outputs=32, warps=4 if form == "plain" else 2, stages=4)
    if most_tokens <= 64 or form == "int4":
        return Launch(tokens=64, outputs=64, stages=4 if form == "int4" else 3)
    return Launch(tokens=128, outputs=64, inputs=64, warps=8)


def _down(form: Form, most_tokens: int) -> Launch:
    if most_tokens <= 16:
        return Launch(tokens=16, outputs=32, warps=4 if form == "plain" else 2, stages=10 if form == "int4" else 6)
    if most_tokens <= 32:
        return Launch(tokens=32, outputs=32, warps=4 if form == "plain" else 2)
    if most_tokens <= 64:
        return Launch(tokens=64, outputs=64)
    return Launch(tokens=128, outputs=128, inputs=64, warps=8)


def card_name(name: str) -> str:
    """Return a card's name as files have it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def tuned_key(product: Product, form: Form, tokens: int) -> str:
    """Return what a launch goes by in a file: tiles of so many tokens stay so."""
    return f"{product} {form} {tokens}"


@cache
def _tuned() -> dict[str, Launch]:
    """Return what was tuned on this process's card, by `tuned_key`."""
    if not torch.cuda.is_available():
        return {}
    file = TUNED / f"{card_name(torch.cuda.get_device_name())}.json"
    found = json.loads(file.read_text())["launches"] if file.is_file() else {}
    return {key: Launch(**launch) for key, launch in found.items()}


def _tuned_or(product: Product, form: Form, launch: Launch) -> Launch:
    return _tuned().get(tuned_key(product, form, launch.tokens), launch)


def decode_tile(num_choices: int, num_experts: int) -> int:
    """Return the tokens of a tile where so many choices fall on so many experts, nobody on the host knows how.

    Large enough that hardly an expert's tokens take two tiles, and its weights two readings; no larger, because what is
    not there is multiplied, too.
    """
    expected = num_choices / num_experts
    return 16 if expected <= 6 else 32 if expected <= 16 else 64
