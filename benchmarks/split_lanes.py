"""A dispatch to experts in another process, by each lane, beside the same experts in this one.

The router's side is this process, the experts are `python -m experts`, both on one device of one host. What is timed is
from tokens on the device to outputs on the device, experts included. The lanes take turns in short rounds, in random
order. Needs no Ray: on a machine with a GPU, PYTHONPATH is enough.

    python benchmarks/split_lanes.py --device cuda                      a layer like Scout's, four of its experts
    python benchmarks/split_lanes.py --sizes 768 1536 16 --dtype float32
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from models.cpu.environment import CPU_ENVIRONMENT

os.environ.update(CPU_ENVIRONMENT | os.environ)  # before torch, which reads it once

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.expert_processes import open_experts
from benchmarks.random_llama4 import RandomLlama4, write_random_llama4
from experts.weights import ExpertWeights
from models.checkpoint import open_checkpoint
from protos.device_memory import wait_for
from router.placement import Placement
from router.plan import plan_dispatch
from router.transport.grpc import GrpcTransport

LANES = ("inline", "shm", "cuda-ipc")
LOCAL = "local"
"""How the experts in this process are called among the lanes."""
_CPU = torch.device("cpu")
_READY_S = 60.0
_NUM_WARM_UP = 3
_MOST_ERROR = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Of an output beside that of the experts in this process, which may merge other tokens with it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitTimes:
    """What a dispatch takes."""

    num_tokens: int
    """N."""
    seconds: dict[str, float]
    """Median by lane, and that of the experts in this process as "local"."""
    refused: dict[str, str]
    """Why a lane is not among them."""


def measure_split(
    num_tokens: Sequence[int],
    sizes: tuple[int, int, int],
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    quantize: str | None = None,
    lanes: Iterable[str] = LANES,
    threads: int = 1,
    rounds: int = 10,
    repeats: int = 20,
) -> list[SplitTimes]:
    """Return what a dispatch takes by each lane, for each number of tokens.

    Args:
        num_tokens: N of each measurement; spread evenly over the experts.
        sizes: D, F and E of the one layer there is; its weights are random, and written to a temporary folder.
        device: "cpu" or "cuda": of the router's tokens and of the experts.
        dtype: of tokens and weights.
        quantize: how to round weights; None: not at all.
        lanes: which to measure.
        threads: of torch, in both processes.
        rounds: in each of which every lane has its turn.
        repeats: dispatches of a turn.

    Raises:
        RuntimeError: a lane's outputs are not those of the experts in this process.
    """
    torch.set_num_threads(threads)
    hidden_size, expert_width, num_experts = sizes
    model = RandomLlama4(
        layers=1, hidden=hidden_size, heads=1, kv_heads=1, experts=num_experts, expert_width=expert_width, vocab=256
    )
    on = torch.device(device, 0) if device == "cuda" else _CPU
    experts = range(num_experts)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="herd-split-")))
        write_random_llama4(folder, model)
        checkpoint = open_checkpoint(folder)
        name = str(dtype).removeprefix("torch.")
        processes = open_experts(checkpoint, [experts], dtype=name, threads=threads, quantize=quantize, device=device)
        placement = stack.enter_context(processes).transport.placement
        local = ExpertWeights.load(checkpoint, experts, dtype, device=on, quantize=quantize)
        transports, refused = {}, {}
        for lane in lanes:
            transport = connect(lane, placement, checkpoint.fingerprint, on)
            stack.callback(transport.close)
            ((found, reason),) = transport.health().lanes.values()
            if found == lane:
                transports[lane] = transport
            else:
                refused[lane] = reason or f"tensors on {on} travel {found}"
        return [
            SplitTimes(
                num_tokens=number,
                seconds=_measure(_tokens(number, hidden_size, dtype, on), local, transports, rounds, repeats),
                refused=refused,
            )
            for number in num_tokens
        ]


def connect(lane: str, placement: Placement, fingerprint: str, device: torch.device) -> GrpcTransport:
    """Return a transport that offers a lane and, of the others, only those it falls back to."""
    transport = GrpcTransport(
        router_id=f"benchmark-{lane}",
        fingerprint=fingerprint,
        share_from_bytes=None if lane == "inline" else 1,
        device=device if lane == "cuda-ipc" else _CPU,
    )
    transport.update(placement)
    if not transport.wait_ready(range(max(placement.replicas_by_expert) + 1), _READY_S):
        raise RuntimeError(f"expected the experts to be reached within {_READY_S:g} s")
    return transport


def _tokens(number: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.randn(number, width, generator=torch.Generator().manual_seed(number)).to(dtype).to(device)


def _measure(
    hidden_TD: Tensor, local: ExpertWeights, transports: dict[str, GrpcTransport], rounds: int, repeats: int
) -> dict[str, float]:
    num_experts, (layer,) = len(local.expert_ids), local.layers
    ids_TK = torch.arange(hidden_TD.shape[0]).remainder(num_experts).reshape(-1, 1)
    some = next(iter(transports.values()))
    plan = plan_dispatch(ids_TK, some.assign)
    hidden_ND = hidden_TD[plan.token_rows_N.to(hidden_TD.device)].contiguous()
    (share,) = plan.shares
    runs: dict[str, Callable[[], Tensor]] = {
        lane: lambda transport=transport: transport.dispatch(layer, plan, hidden_ND).wait()  # type: ignore[misc]
        for lane, transport in transports.items()
    }
    runs[LOCAL] = lambda: local.run(layer, hidden_ND, share.expert_ids, share.token_counts)
    expected_ND = runs[LOCAL]().double()
    for lane, run in runs.items():
        error = float((run().double() - expected_ND).norm() / expected_ND.norm())
        if not error <= _MOST_ERROR[hidden_ND.dtype]:
            raise RuntimeError(
                f"{lane}: expected the outputs of the experts in this process, found an error of {error}"
            )
    order = random.Random(1)
    medians: dict[str, list[float]] = {lane: [] for lane in runs}
    for _ in range(rounds):
        for lane in order.sample(list(runs), len(runs)):
            medians[lane].append(statistics.median(_seconds(runs[lane], hidden_ND.device, repeats)))
    return {lane: statistics.median(found) for lane, found in medians.items()}


def _seconds(run: Callable[[], Tensor], device: torch.device, repeats: int) -> list[float]:
    seconds = []
    for number in range(_NUM_WARM_UP + repeats):
        wait_for(device)
        started = time.perf_counter()
        run()
        wait_for(device)
        if number >= _NUM_WARM_UP:
            seconds.append(time.perf_counter() - started)
    return seconds


def main() -> None:
    """Measure and print a line of JSON for each number of tokens."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=3, default=[5120, 8192, 4], metavar=("D", "F", "E"))
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 32, 64, 256])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--quantize", choices=["int8", "int4"])
    parser.add_argument("--threads", type=int, default=1, help="of torch, in both processes (1)")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=20, help="dispatches of each lane per round (20)")
    options = parser.parse_args()
    times = measure_split(
        options.tokens,
        tuple(options.sizes),
        device=options.device,
        dtype=getattr(torch, options.dtype),
        quantize=options.quantize,
        threads=options.threads,
        rounds=options.rounds,
        repeats=options.repeats,
    )
    for each in times:
        microseconds = {lane: round(seconds * 1e6, 1) for lane, seconds in each.seconds.items()}
        print(json.dumps({"tokens": each.num_tokens, "us": microseconds, "refused": each.refused}), flush=True)


if __name__ == "__main__":
    main()
