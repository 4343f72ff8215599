"""What Herd reaches on one GPU, of what the card can do: kernels, the MoE block, a whole Scout in four bits.

    python benchmarks/gpu.py                         all of it, in minutes, on one card with 80 GB
    python benchmarks/gpu.py --parts experts --forms int4 --tokens 1 16
    python benchmarks/gpu.py --tiny                  over a tiny model: on a CPU too (set TRITON_INTERPRET=1), without
                                                     figures, to see that it runs

card      what copying reaches, and multiplying in bfloat16
experts   the kernels at Scout's and Maverick's shapes, for every form of weights, and torch's grouped product
block     a MoE block from gate to sum, and transformers'
split     a step's time by its layers: router and experts as two processes, by every lane, and in one
model     Scout in int4, random weights: memory, longest context, tokens/s at 1 to 64 sequences, of the roofline

Needs torch, triton and this folder, not Ray. Times of kernels are of CUDA graphs, medians of several replays; every
call computes with other weights than the last few, more of them than the card's cache holds. Where values are checked,
outputs are NaN before. Inputs are never zero.

Writes benchmarks/results/gpu-CARD.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.environment import RESULTS, describe_environment
from benchmarks.gpu.card import Card, measure_card
from benchmarks.gpu.experts import Shape, measure_experts
from benchmarks.gpu.model import MeasuredModel
from benchmarks.gpu.moe_block import measure_moe_block
from benchmarks.gpu.split import measure_split_steps
from benchmarks.random_llama4 import RandomLlama4
from models.config import ModelConfig
from models.gpu.launches import card_name
from models.linear import Quantization
from models.presets import SCOUT

PARTS = ("experts", "block", "split", "model")
FORMS = ("plain", "fp8", "int4")
TOKENS = (1, 4, 16, 64, 256, 1024, 2048, 4096)
SHAPES = (
    Shape(name="scout", width=5120, inner=8192, experts=16),
    Shape(name="maverick", width=5120, inner=8192, experts=128),
)
SEQUENCES = (1, 8, 32, 64)
_PROMPT, _GENERATED = 512, 256
_TINY = replace(
    SCOUT,
    num_layers=2,
    hidden_size=128,
    num_heads=2,
    num_kv_heads=1,
    head_size=32,
    vocab_size=64,
    expert_width=128,
    num_experts=2,
    moe_layers=(0, 1),
    nope_layers=(1,),
    attention_chunk=32,
    max_positions=256,
    eos_ids=(2,),
    bos_id=1,
    pad_id=None,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, write the result."""
    options = _parser().parse_args(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.tiny:
        print("expected an NVIDIA GPU, found none: run this where there is one, or try --tiny", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    card = measure_card(device)
    print(f"{card.name}: copies {card.copy_bytes_per_s / 1e12:.2f} TB/s, multiplies {card.flops / 1e12:.0f} TFLOP/s")
    result: dict[str, object] = {"environment": describe_environment("torch", "triton"), "card": asdict(card)}
    for part in options.parts:
        began = time.perf_counter()
        rows = []
        for row in _measure(part, card, options, device):
            print(row.described(), flush=True)
            rows.append(asdict(row))
        result[part] = rows
        print(f"-- {part}: {time.perf_counter() - began:.0f} s", flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
            _write(card, result)
    return 0


def _measure(part: str, card: Card, options: argparse.Namespace, device: torch.device) -> Iterator[object]:
    """Yield the rows of a part, each as soon as it is there."""
    config: ModelConfig = _TINY if options.tiny else SCOUT
    tokens = (3,) if options.tiny else options.tokens
    if part == "experts":
        tiny = Shape(name="tiny", width=128, inner=128, experts=4)
        for shape in (tiny,) if options.tiny else SHAPES:
            for form in options.forms:
                yield from measure_experts(card, shape, form, tokens, device)
    elif part == "block":
        yield from measure_moe_block(config, tokens, device)
    elif part == "split":
        shape = {
            "layers": 1,
            "hidden": config.hidden_size,
            "heads": config.num_heads,
            "kv_heads": config.num_kv_heads,
            "head_size": config.head_size,
            "experts": config.num_experts,
            "expert_width": config.expert_width,
            "vocab": 512,
        }
        quantize: Quantization | None = "int4" if device.type == "cuda" else None
        sequences, context = ((2,), 8) if options.tiny else (SEQUENCES, _PROMPT)
        yield from measure_split_steps(RandomLlama4(**shape), quantize, sequences, context, device)
    else:
        sequences = (1,) if options.tiny else SEQUENCES
        model = MeasuredModel(config, "int4", max(sequences), device)
        try:
            yield model.memory()
            prompt, generated = (5, 3) if options.tiny else (_PROMPT, _GENERATED)
            yield from model.measure(card, sequences, prompt, generated)
        finally:
            model.close()


def _write(card: Card, result: dict[str, object]) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"gpu-{card_name(card.name)}.json").write_text(json.dumps(result, indent=1) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure (all)")
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS, help="of experts and block")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="of experts' weights (all)")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, for trying this out")
    return parser


if __name__ == "__main__":
    sys.exit(main())
