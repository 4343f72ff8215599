"""What the expert kernels reach on a GPU, of what the card can do, beside torch's grouped product at the same shape.

    python benchmarks/gpu.py

Prints for the card: what copying reaches, and multiplying in bfloat16. Then for experts of Scout's and Maverick's
shape, every form of weights and 1 to 4,096 tokens: microseconds, bytes and operations per second, their part of what
the card reached, the error against double precision, and torch's time for the same in bfloat16.

Every call computes with other weights than the last few, more of them than the card's cache holds; calls are recorded
as a CUDA graph and replayed; medians of several replays. Where values are checked, outputs are NaN before. Inputs are
never zero. Not run on a card yet.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

from models.gpu.launches import down_launch, gate_up_launch
from models.gpu.swiglu import Block, SwigluPlan, plan_swiglu, swiglu
from models.gpu.weight import GpuWeight, plain, round_fp8, round_int4

RESULTS = Path(__file__).resolve().parent / "results"
ROUND = {"plain": plain, "fp8": round_fp8, "int4": round_int4}
_BYTES = {"plain": 2, "fp8": 1, "int4": 0.52}
TOKENS = (1, 4, 16, 64, 256, 1024, 4096)
SHAPES = {"scout": (5120, 8192, 16), "maverick": (5120, 8192, 128)}
"""D, F, experts. An expert's shapes are the same; the tokens of a step meet up to 16, or up to 128 if so many fit."""
_MOST_WEIGHTS_BYTES = 24 << 30
"""Of all experts that calls take turns with."""
_CALLS, _REPLAYS = 8, 7
_MOST_CHECKED = 64
"""Tokens whose outputs are compared with double precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One form, shape and number of tokens."""

    shape: str
    form: str
    tokens: int
    experts: int
    """That the tokens visit."""
    us: float
    tb_per_s: float
    """Of weights, each counted once."""
    tflops: float
    part_of_copy: float
    """Of what copying reads and writes together: reading alone may be a little faster."""
    part_of_matmul: float
    error: float
    torch_us: float | None
    """Of torch's grouped product with the same experts in bfloat16; None where it was not run."""


def main() -> int:
    """Measure, print, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, nargs="+", default=TOKENS)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--forms", nargs="+", choices=ROUND, default=list(ROUND))
    parser.add_argument("--name", default="gpu", help="of the result file (gpu)")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("expected an NVIDIA GPU, found none: run this where there is one", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    copy_bytes_per_s, flops = measure_copy(), measure_matmul()
    card = torch.cuda.get_device_properties(0)
    print(f"{card.name}: copies {copy_bytes_per_s / 1e12:.2f} TB/s, multiplies {flops / 1e12:.0f} TFLOP/s", flush=True)
    rows = []
    for shape in options.shapes:
        for form in options.forms:
            rows += measure_form(shape, form, options.tokens, copy_bytes_per_s, flops)
    result = {
        "card": card.name,
        "torch": torch.__version__,
        "copy_tb_per_s": copy_bytes_per_s / 1e12,
        "matmul_tflops": flops / 1e12,
        "rows": [asdict(row) for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure_copy() -> float:
    """Return bytes read and written per second."""
    source = torch.randn(1 << 29, device="cuda", dtype=torch.bfloat16)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds_of([lambda: target.copy_(source)])


def measure_matmul() -> float:
    """Return operations per second of a product of two large matrices."""
    size = 8192
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_of([lambda: torch.mm(a, b)])


def measure_form(shape: str, form: str, tokens: list[int], copy_bytes_per_s: float, flops: float) -> list[Row]:
    """Measure one form of one shape's experts for every number of tokens."""
    width, inner, most_experts = SHAPES[shape]
    expert_bytes = 3 * width * inner * _BYTES[form]
    num_blocks = max(8, min(most_experts, int(_MOST_WEIGHTS_BYTES // expert_bytes)))
    blocks = [random_block(form, width, inner) for _ in range(num_blocks)]
    stacked = stack(blocks) if form == "plain" else None
    if stacked is not None:
        blocks = [Block(plain(gate_up), plain(down)) for gate_up, down in zip(*stacked, strict=True)]
    rows = []
    for number in tokens:
        num_experts = min(number, most_experts, num_blocks)
        counts = [number // num_experts + (index < number % num_experts) for index in range(num_experts)]
        x_ND = torch.randn(number, width, device="cuda", dtype=torch.bfloat16)
        turns = [chosen(num_blocks, num_experts, turn) for turn in range(_CALLS)]
        launches = gate_up_launch(form, max(counts)), down_launch(form, max(counts))
        plans = [plan_swiglu([blocks[index] for index in turn], counts, *launches) for turn in turns]
        error = error_of(blocks, turns[0], counts, x_ND, plans[0])
        seconds = seconds_of([partial(swiglu, x_ND, plan) for plan in plans])
        torch_s = torch_seconds(stacked, turns, counts, x_ND) if stacked is not None else None
        num_bytes = num_experts * sum(each.num_bytes for each in (blocks[0].gate_up, blocks[0].down))
        operations = 6 * number * width * inner
        row = Row(
            shape=shape,
            form=form,
            tokens=number,
            experts=num_experts,
            us=seconds * 1e6,
            tb_per_s=num_bytes / seconds / 1e12,
            tflops=operations / seconds / 1e12,
            part_of_copy=num_bytes / seconds / copy_bytes_per_s,
            part_of_matmul=operations / seconds / flops,
            error=error,
            torch_us=None if torch_s is None else torch_s * 1e6,
        )
        print(described(row), flush=True)
        rows.append(row)
    return rows


def random_block(form: str, width: int, inner: int) -> Block:
    """Return an expert of normal weights."""

    def weight(num_outputs: int, num_inputs: int) -> GpuWeight:
        values = torch.randn(num_outputs, num_inputs, device="cuda", dtype=torch.bfloat16) * num_inputs**-0.5
        return ROUND[form](values)

    return Block(weight(2 * inner, width), weight(width, inner))


def chosen(num_blocks: int, num_experts: int, turn: int) -> list[int]:
    """Return the experts of a call: the next ones, so that no cache has them from the last call."""
    return [(turn * num_experts + index) % num_blocks for index in range(num_experts)]


def error_of(blocks: list[Block], turn: list[int], counts: list[int], x_ND: Tensor, plan: SwigluPlan) -> float:
    """Return the relative error of the first tokens' outputs against double precision, of the weights as rounded."""
    torch.use_deterministic_algorithms(True, warn_only=True)  # memory that nobody has written yet is NaN
    found_ND, expected, start = swiglu(x_ND, plan), [], 0
    torch.use_deterministic_algorithms(False)
    for index, count in zip(turn, counts, strict=True):
        taken = min(count, _MOST_CHECKED)
        rows_TD, block = x_ND[start : start + taken].double(), blocks[index]
        gate_TF, up_TF = (rows_TD @ block.gate_up.dequantized().double().t()).chunk(2, dim=1)
        expected_TD = (F.silu(gate_TF) * up_TF) @ block.down.dequantized().double().t()
        expected.append((found_ND[start : start + taken].double() - expected_TD, expected_TD))
        start += count
        if len(expected) * taken >= _MOST_CHECKED:
            break
    differences, outputs = (torch.cat(each) for each in zip(*expected, strict=True))
    return float(differences.norm() / outputs.norm())


def stack(blocks: list[Block]) -> tuple[Tensor, Tensor]:
    """Return all weights as torch's grouped product wants them, [E, 2F, D] and [E, D, F]."""
    gate_up = torch.stack([block.gate_up.values for block in blocks])
    down = torch.stack([block.down.values for block in blocks])
    return gate_up, down


def torch_seconds(
    stacked: tuple[Tensor, Tensor], turns: list[list[int]], counts: list[int], x_ND: Tensor
) -> float | None:
    """Return the seconds of torch's grouped product with the same experts; None where this torch has none."""
    if not hasattr(torch, "_grouped_mm"):
        return None
    offsets = torch.tensor(counts, device="cuda", dtype=torch.int32).cumsum(0, dtype=torch.int32)

    def call(first: int) -> Callable[[], Tensor]:
        gate_up, down = (each[first : first + len(counts)].transpose(1, 2) for each in stacked)

        def run() -> Tensor:
            gate_NF, up_NF = torch._grouped_mm(x_ND, gate_up, offs=offsets).chunk(2, dim=1)
            return torch._grouped_mm(F.silu(gate_NF) * up_NF, down, offs=offsets)

        return run

    last = stacked[0].shape[0] - len(counts)
    return seconds_of([call(min(turn[0], last)) for turn in turns])


def seconds_of(calls: list[Callable[[], Tensor]]) -> float:
    """Return the seconds of one call: the median of several replays of all of them as one graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls:  # compiles, too
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    times = []
    for _ in range(_REPLAYS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / len(calls))
    return median(times)


def described(row: Row) -> str:
    """Return a row as a line."""
    beside = "" if row.torch_us is None else f", torch {row.torch_us:.0f} us ({row.torch_us / row.us:.2f}x)"
    return (
        f"{row.shape} {row.form:>5}, {row.tokens:>4} tokens, {row.experts:>3} experts: {row.us:8.1f} us, "
        f"{row.tb_per_s:.2f} TB/s ({row.part_of_copy:.0%}), {row.tflops:.0f} TFLOP/s ({row.part_of_matmul:.0%}), "
        f"error {row.error:.1e}{beside}"
    )


if __name__ == "__main__":
    sys.exit(main())
