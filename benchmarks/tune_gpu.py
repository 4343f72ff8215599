"""Tries ways of cutting the expert kernels on the card that is there, and keeps the fastest of each.

    python benchmarks/tune_gpu.py                    all forms, an hour or so, mostly of compiling; writes
                                                     models/gpu/tuned/CARD.json after each
    python benchmarks/tune_gpu.py --forms int4 --tiles 16

Every form of weights, each tile of tokens, both products, at the shapes of Scout's and Maverick's experts, which are
the same. Calls take turns with more weights than the card's cache holds, as CUDA graphs. What does not fit the card is
passed over. Then `python benchmarks/gpu.py` says what was gained.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import triton

from benchmarks.environment import describe_environment
from benchmarks.gpu.card import seconds_of
from benchmarks.gpu.random_weights import random_weight
from models.gpu.launches import TUNED, Product, card_name, down_launch, gate_up_launch, tuned_key
from models.gpu.product import Launch, grouped_product
from models.gpu.swiglu import gated_product
from models.gpu.tiles import tile_table
from models.gpu.weight import Form, GpuWeight

FORMS: tuple[Form, ...] = ("plain", "int8", "fp8", "int4")
TILES = (16, 32, 64, 128)
WIDTH, INNER = 5120, 8192
_EXPERTS, _CALLS = 16, 4
"""Of a call, each with a full tile of tokens; and calls that take turns."""


def main() -> int:
    """Tune, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="of weights (all)")
    parser.add_argument("--tiles", nargs="+", type=int, choices=TILES, default=list(TILES), help="tokens of one (all)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("expected an NVIDIA GPU, found none: run this where there is one", file=sys.stderr)
        return 2
    card = torch.cuda.get_device_name()
    file = TUNED / f"{card_name(card)}.json"
    known = json.loads(file.read_text())["launches"] if file.is_file() else {}
    for form, tile in product(options.forms, options.tiles):
        for which in ("gate_up", "down"):
            if in_use(which, form, tile).tokens != tile:
                continue  # such tiles are not used
            best, seconds, before_s = tune(which, form, tile)
            known[tuned_key(which, form, best.tokens)] = asdict(best)
            print(f"{which} {form} {tile}: {seconds * 1e6:.1f} us, was {before_s * 1e6:.1f}: {best}", flush=True)
            TUNED.mkdir(exist_ok=True)
            described = {"card": card, "environment": describe_environment("torch", "triton"), "launches": known}
            file.write_text(json.dumps(described, indent=1) + "\n")
    return 0


def tune(which: Product, form: Form, tile: int) -> tuple[Launch, float, float]:
    """Return the fastest launch, its seconds, and those of the one in use."""
    device = torch.device("cuda")
    first = in_use(which, form, tile)
    shape = (2 * INNER, WIDTH) if which == "gate_up" else (WIDTH, INNER)
    weights = [[random_weight(form, *shape, device) for _ in range(_EXPERTS)] for _ in range(_CALLS)]
    x_ND = torch.randn(_EXPERTS * first.tokens, shape[1], device=device, dtype=torch.bfloat16)
    before_s = measure(which, weights, x_ND, first)
    best, best_s = first, before_s
    for launch in candidates(form, first):
        try:
            seconds = measure(which, weights, x_ND, launch)
        except triton.TritonError:
            continue  # too large for the card, or for the compiler
        if seconds < best_s:
            best, best_s = launch, seconds
    return best, best_s, before_s


def in_use(which: Product, form: Form, tile: int) -> Launch:
    """Return the launch for tiles of so many tokens."""
    return gate_up_launch(form, tile) if which == "gate_up" else down_launch(form, tile)


def candidates(form: Form, first: Launch) -> Iterator[Launch]:
    """Yield other ways to cut tiles of as many tokens."""
    is_few = first.tokens <= 32
    inputs = (first.inputs,) if form == "int4" else (64, 128) if is_few else (32, 64)
    cuts = ((16, 32, 64), (2, 4), (3, 4, 6)) if is_few else ((64, 128), (4, 8), (2, 3, 4))
    for width, (outputs, warps, stages) in product(inputs, product(*cuts)):
        launch = replace(first, outputs=outputs, inputs=width, warps=warps, stages=stages)
        if launch != first:
            yield launch


def measure(which: Product, weights: list[list[GpuWeight]], x_ND: torch.Tensor, launch: Launch) -> float:
    """Return the seconds of a call."""
    calls = []
    for turn in weights:
        tiles = tile_table(turn, [launch.tokens] * len(turn), launch.tokens)
        if which == "gate_up":
            calls.append(partial(gated_product, x_ND, tiles, turn[0], launch))
        else:
            calls.append(partial(grouped_product, x_ND, tiles, turn[0].form, turn[0].num_outputs, launch))
    return seconds_of(calls, x_ND.device)


if __name__ == "__main__":
    sys.exit(main())
