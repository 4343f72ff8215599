"""Round trip of a dispatch without its computing: tensors in messages beside tensors in shared memory.

Replicas in processes of their own double what they get, so that what is timed is what the router's step pays for the
hop: copies, messages, thread switches. The lanes take turns in short rounds, in random order; the ratio is taken round
by round. The smallest size at which sharing wins is `router.transport.grpc.SHARE_FROM_BYTES`.

    python benchmarks/dispatch_lanes.py
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from dispatch import RandomExperts, server_process
from dispatch_servers import LAYER
from environment import RESULTS, describe_environment

from router.placement import ExpertHolder, Placement
from router.plan import plan_dispatch
from router.transport.grpc import GrpcTransport

TOKENS = (1, 8, 16, 32, 64, 256, 1024)
LANES: dict[str, int | None] = {"inline": None, "shared": 1}
_READY_S = 60.0
_NUM_WARM_UP = 3
_PREAMBLE = """# Lanes of a dispatch

Microseconds, written by `benchmarks/dispatch_lanes.py`: a dispatch's round trip over TCP through the router's
transport, to replicas that double their tokens instead of computing experts. "Shared / inline" is the median of that
ratio taken round by round, with its middle half.
"""


def connect(addresses: list[str], share_from_bytes: int | None, num_experts: int) -> GrpcTransport:
    """Return a transport to replicas that hold the experts in turn."""
    holders = [
        ExpertHolder(
            replica_id=str(index),
            address=address,
            host=socket.gethostname(),
            expert_ids=tuple(range(index, num_experts, len(addresses))),
        )
        for index, address in enumerate(addresses)
    ]
    transport = GrpcTransport(
        router_id="benchmark", fingerprint=RandomExperts.fingerprint, share_from_bytes=share_from_bytes
    )
    transport.update(Placement(version=1, holders=tuple(holders)))
    if not transport.wait_ready(range(num_experts), _READY_S):
        raise SystemExit(f"no replicas at {addresses} within {_READY_S:g} s")
    return transport


def time_round(transport: GrpcTransport, hidden_TD: torch.Tensor, num_experts: int, num_repeats: int) -> float:
    """Return the median round trip of a few dispatches, in seconds."""
    ids_TK = torch.arange(hidden_TD.shape[0]).remainder(num_experts).reshape(-1, 1)
    plan = plan_dispatch(ids_TK, transport.assign)
    hidden_ND = hidden_TD[plan.token_rows_N]
    seconds = []
    for number in range(_NUM_WARM_UP + num_repeats):
        started = time.perf_counter()
        outputs_ND = transport.dispatch(LAYER, plan, hidden_ND).wait()
        if number >= _NUM_WARM_UP:
            seconds.append(time.perf_counter() - started)
    if not torch.equal(outputs_ND, hidden_ND * 2):
        raise SystemExit("expected the tokens doubled, found something else")
    return statistics.median(seconds)


def measure(options: argparse.Namespace) -> list[dict[str, float]]:
    """Return a row of figures for each number of tokens and replicas."""
    order = random.Random(1)
    num_experts = options.sizes[2]
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        addresses = []
        for index in range(2):
            (place := folder / str(index)).mkdir()
            addresses.append(stack.enter_context(server_process("doubling", place, options))["tcp"])
        transports = {}
        for num_replicas in (1, 2):
            for lane, share_from_bytes in LANES.items():
                transport = connect(addresses[:num_replicas], share_from_bytes, num_experts)
                stack.callback(transport.close)
                transports[num_replicas, lane] = transport
        for num_tokens in TOKENS:
            hidden_TD = torch.randn(num_tokens, options.sizes[0]).to(getattr(torch, options.dtype))
            times: dict[tuple[int, str], list[float]] = {key: [] for key in transports}
            for _ in range(options.rounds):
                for key in order.sample(list(transports), len(transports)):
                    repeats = max(options.repeats // (1 + num_tokens // 256), 3)
                    times[key].append(time_round(transports[key], hidden_TD, num_experts, repeats))
            rows += [summarise(num_tokens, num_replicas, times) for num_replicas in (1, 2)]
            print(rows[-2:], flush=True)
    return rows


def summarise(num_tokens: int, num_replicas: int, times: dict[tuple[int, str], list[float]]) -> dict[str, float]:
    """Return medians in microseconds and the ratio with its quartiles."""
    inline, shared = times[num_replicas, "inline"], times[num_replicas, "shared"]
    low, middle, high = statistics.quantiles([s / i for s, i in zip(shared, inline, strict=True)], n=4)
    return {
        "tokens": num_tokens,
        "replicas": num_replicas,
        "inline_us": statistics.median(inline) * 1e6,
        "shared_us": statistics.median(shared) * 1e6,
        "ratio": middle,
        "ratio_q1": low,
        "ratio_q3": high,
    }


def as_table(rows: list[dict[str, float]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| tokens | replicas | inline | shared | shared / inline | middle half |",
        "|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {row['tokens']} | {row['replicas']} | {row['inline_us']:.0f} | {row['shared_us']:.0f} | {row['ratio']:.2f} "
        f"| {row['ratio_q1']:.2f} to {row['ratio_q3']:.2f} |"
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=3, default=[768, 1536, 16], metavar=("D", "F", "E"))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1, help="of torch, in every process (1)")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=20, help="per round; fewer for many tokens (20)")
    parser.add_argument("--name", default="dispatch_lanes", help="of the files under benchmarks/results; empty: none")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    environment = describe_environment("grpcio", "protobuf", "torch")
    rows = measure(options)
    print(as_table(rows))
    if options.name:
        facts = environment | {
            "tokens of": f"{options.sizes[0]} values, {options.dtype}",
            "rounds x repeats": f"{options.rounds} x {options.repeats}",
        }
        lines = "\n".join(f"- {key}: {value}" for key, value in facts.items())
        (RESULTS / f"{options.name}.json").write_text(json.dumps({"environment": facts, "rows": rows}, indent=2) + "\n")
        (RESULTS / f"{options.name}.md").write_text(f"{_PREAMBLE}\n{as_table(rows)}\n\n{lines}\n")


if __name__ == "__main__":
    main()
