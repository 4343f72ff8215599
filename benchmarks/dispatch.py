"""Round trip of one dispatch, beside a bare gRPC echo of the same bytes and the expert's computing alone.

The goal: p50 of a dispatch <= 1.5 x (p50 of the echo + p50 of the computing). What is timed is what a router's step
waits for: encoding, the router's own transport, the wire, the replica, decoding. The computing alone is timed in this
process, on the same weights. Everything is interleaved in short rounds, in random order, because other work on a
machine comes and goes; the ratio is also given round by round, where both of its sides saw the same machine.

    python benchmarks/dispatch.py                          D = 768, F = 1536, E = 16, float32
    python benchmarks/dispatch.py --sizes 5120 8192 2 --dtype bfloat16 --name dispatch_scout
"""

from __future__ import annotations

import argparse
import json
import queue
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import torch
from dispatch_servers import ECHO_METHOD, LAYER, RandomExperts
from environment import RESULTS, describe_environment

from experts.weights import ExpertWeights
from protos.codec import encode_tensor
from protos.expert.v1 import expert_pb2
from router.placement import ExpertHolder, Placement
from router.plan import DispatchPlan, plan_dispatch
from router.transport.grpc import GrpcTransport

GOAL = 1.5
TOKENS = (1, 16, 256)
LANES = ("tcp", "unix")
_PREAMBLE = f"""# Round trip of one dispatch

Microseconds, written by `benchmarks/dispatch.py`. Goal: the dispatch's p50 is at most {GOAL} times the sum of the
echo's p50 and the computing's p50. "By round" is the middle half of that ratio taken round by round. The computing is
timed in a process that does nothing else meanwhile, on the same weights; the echo is a stream of raw bytes through a
generator, without protobuf messages.
"""
_NUM_ROUTINGS = 16
_NUM_WARM_UP = 3
_READY_S = 60.0


@dataclass(frozen=True, slots=True)
class Routing:
    """Tokens of one dispatch, and where they go."""

    hidden_ND: torch.Tensor
    expert_ids: tuple[int, ...]
    token_counts: tuple[int, ...]
    plan: DispatchPlan


class EchoClient:
    """A bare stream: sends bytes, waits for bytes."""

    def __init__(self, address: str) -> None:
        options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.insecure_channel(address, options=options)
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._call = self._channel.stream_stream(ECHO_METHOD)(iter(self._outbox.get, None))

    def exchange(self, message: bytes) -> None:
        """Send a message and wait for it to come back."""
        self._outbox.put(message)
        next(self._call)

    def close(self) -> None:
        """Close the stream."""
        self._outbox.put(None)
        self._channel.close()


@contextmanager
def server_process(kind: str, folder: Path, options: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Run a server in a process of its own and give its addresses."""
    script = Path(__file__).with_name("dispatch_servers.py")
    sizes = map(str, options.sizes)
    command = [sys.executable, script, kind, "--unix", folder / kind, "--dtype", options.dtype]
    command += ["--threads", str(options.threads), "--sizes", *sizes]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline())
    finally:
        process.communicate(timeout=_READY_S)


def make_transport(name: str, addresses: dict[str, str], num_experts: int) -> GrpcTransport:
    """Return the router's transport, connected over TCP or over the Unix socket."""
    holder = ExpertHolder(
        replica_id=name,
        address=addresses["tcp"],
        unix_address=addresses["unix"] if name == "unix" else None,
        host=socket.gethostname(),
        expert_ids=tuple(range(num_experts)),
    )
    transport = GrpcTransport(router_id="benchmark", fingerprint=RandomExperts.fingerprint)
    transport.update(Placement(version=1, holders=(holder,)))
    if not transport.wait_ready(range(num_experts), _READY_S):
        raise SystemExit(f"no replica at {addresses[name]} within {_READY_S:g} s")
    return transport


def make_routings(num_tokens: int, options: argparse.Namespace, replica_id: str) -> list[Routing]:
    """Return dispatches of that many tokens, routed top-1 to random experts."""
    hidden_size, _, num_experts = options.sizes
    generator = torch.Generator().manual_seed(num_tokens)
    routings = []
    for _ in range(_NUM_ROUTINGS):
        ids_TK = torch.randint(num_experts, (num_tokens, 1), generator=generator)
        plan = plan_dispatch(ids_TK, lambda counts: {each: ((replica_id, n),) for each, n in counts.items()})
        hidden_ND = torch.randn(num_tokens, hidden_size, generator=generator).to(getattr(torch, options.dtype))
        (share,) = plan.shares
        routings.append(Routing(hidden_ND, share.expert_ids, share.token_counts, plan))
    return routings


def message_of(routing: Routing) -> bytes:
    """Return the bytes a dispatch puts on the wire; its answer has as many, within a dozen."""
    dispatch = expert_pb2.Dispatch(
        dispatch_id=1,
        expert_ids=routing.expert_ids,
        token_counts=routing.token_counts,
        hidden=encode_tensor(routing.hidden_ND),
        deadline_ms=60_000,
    )
    return expert_pb2.DispatchRequest(dispatch=dispatch).SerializeToString()


def measure(options: argparse.Namespace) -> dict[int, dict[str, list[list[float]]]]:
    """Return, by number of tokens and lane, the round trips of every round, in seconds."""
    torch.set_num_threads(options.threads)
    held = RandomExperts(*options.sizes).load(getattr(torch, options.dtype))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        replica = stack.enter_context(server_process("experts", folder, options))
        echo = stack.enter_context(server_process("echo", folder, options))
        work: dict[int, dict[str, Callable[[int], object]]] = {tokens: {} for tokens in TOKENS}
        for lane in LANES:
            transport = make_transport(lane, replica, options.sizes[2])
            stack.callback(transport.close)
            client = EchoClient(echo[lane])
            stack.callback(client.close)
            for tokens in TOKENS:
                routings = make_routings(tokens, options, lane)
                check_outputs(transport, held, routings[0])
                work[tokens][f"echo {lane}"] = _echo(client, message_of(routings[0]))
                work[tokens][f"dispatch {lane}"] = _dispatch(transport, routings)
                work[tokens]["compute"] = _compute(held, routings)
        return {
            tokens: run_rounds(work[tokens], options.rounds, max(options.repeats // (1 + tokens // 64), 3))
            for tokens in TOKENS
        }


def check_outputs(transport: GrpcTransport, held: ExpertWeights, routing: Routing) -> None:
    """Check that what is timed is the right answer."""
    found_ND = transport.dispatch(LAYER, routing.plan, routing.hidden_ND).wait()
    expected_ND = held.run(LAYER, routing.hidden_ND, routing.expert_ids, routing.token_counts)
    torch.testing.assert_close(found_ND, expected_ND)


def _echo(client: EchoClient, message: bytes) -> Callable[[int], object]:
    return lambda _: client.exchange(message)


def _dispatch(transport: GrpcTransport, routings: list[Routing]) -> Callable[[int], object]:
    def run(number: int) -> object:
        routing = routings[number % len(routings)]
        return transport.dispatch(LAYER, routing.plan, routing.hidden_ND).wait()

    return run


def _compute(held: ExpertWeights, routings: list[Routing]) -> Callable[[int], object]:
    def run(number: int) -> object:
        routing = routings[number % len(routings)]
        return held.run(LAYER, routing.hidden_ND, routing.expert_ids, routing.token_counts)

    return run


def run_rounds(
    work: dict[str, Callable[[int], object]], num_rounds: int, num_repeats: int
) -> dict[str, list[list[float]]]:
    """Time each kind of work a few times per round, the kinds in random order."""
    order = random.Random(1)
    times: dict[str, list[list[float]]] = {name: [] for name in work}
    for _ in range(num_rounds):
        for name in order.sample(list(work), len(work)):
            run = work[name]
            for number in range(_NUM_WARM_UP):
                run(number)
            seconds = []
            for number in range(num_repeats):
                started = time.perf_counter()
                run(number)
                seconds.append(time.perf_counter() - started)
            times[name].append(seconds)
    return times


def summarise(times: dict[str, list[list[float]]]) -> dict[str, dict[str, float]]:
    """Return p50 and p99 of each kind of work in microseconds, and the ratios to the goal's right side."""
    summary = {}
    for name, rounds in times.items():
        pooled = [seconds for round_ in rounds for seconds in round_]
        quartiles = statistics.quantiles([statistics.median(round_) for round_ in rounds], n=4)
        summary[name] = {
            "p50_us": percentile(pooled, 50) * 1e6,
            "p99_us": percentile(pooled, 99) * 1e6,
            "round_p50_q1_us": quartiles[0] * 1e6,
            "round_p50_q3_us": quartiles[2] * 1e6,
            "samples": len(pooled),
        }
    for lane in LANES:
        dispatch, echo = summary[f"dispatch {lane}"], summary[f"echo {lane}"]
        dispatch["ratio"] = dispatch["p50_us"] / (echo["p50_us"] + summary["compute"]["p50_us"])
        ratios = [
            statistics.median(of_dispatch) / (statistics.median(of_echo) + statistics.median(of_compute))
            for of_dispatch, of_echo, of_compute in zip(
                times[f"dispatch {lane}"], times[f"echo {lane}"], times["compute"], strict=True
            )
        ]
        dispatch["round_ratio_q1"], dispatch["round_ratio_p50"], dispatch["round_ratio_q3"] = statistics.quantiles(
            ratios, n=4
        )
    return summary


def percentile(values: list[float], percent: int) -> float:
    """Return the nearest-rank percentile."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def as_table(summaries: dict[int, dict[str, dict[str, float]]]) -> str:
    """Return the results as a Markdown table."""
    lines = [
        "| tokens | lane | dispatch p50 | p99 | echo p50 | p99 | compute p50 | p50 / (echo + compute) | by round |",
        "|---:|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for tokens, summary in summaries.items():
        for lane in LANES:
            dispatch, echo = summary[f"dispatch {lane}"], summary[f"echo {lane}"]
            verdict = "" if dispatch["ratio"] <= GOAL else " (over)"
            lines.append(
                f"| {tokens} | {lane} | {dispatch['p50_us']:.0f} | {dispatch['p99_us']:.0f} | {echo['p50_us']:.0f} "
                f"| {echo['p99_us']:.0f} | {summary['compute']['p50_us']:.0f} | {dispatch['ratio']:.2f}{verdict} "
                f"| {dispatch['round_ratio_q1']:.2f} to {dispatch['round_ratio_q3']:.2f} |"
            )
    return "\n".join(lines)


def write_results(name: str, environment: dict[str, str], settings: dict[str, object], results: dict) -> None:
    """Write the numbers as JSON and, for people, as Markdown."""
    RESULTS.mkdir(exist_ok=True)
    document = {"environment": environment, "settings": settings, "goal": GOAL, "results": results}
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    facts = "\n".join(f"- {key}: {value}" for key, value in (environment | settings).items())
    (RESULTS / f"{name}.md").write_text(f"{_PREAMBLE}\n{as_table(results)}\n\n{facts}\n")


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs=3, default=[768, 1536, 16], metavar=("D", "F", "E"))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=1, help="threads that compute one expert (1)")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=30, help="per round, kind and lane; fewer for many tokens (30)")
    parser.add_argument("--name", default="dispatch", help="of the files under benchmarks/results; empty: write none")
    options = parser.parse_args()
    environment = describe_environment("grpcio", "protobuf", "torch")
    results = {tokens: summarise(times) for tokens, times in measure(options).items()}
    print(as_table(results))
    if options.name:
        hidden_size, expert_width, num_experts = options.sizes
        settings = {
            "experts": f"D = {hidden_size}, F = {expert_width}, E = {num_experts}, {options.dtype}, random top-1",
            "threads per expert": options.threads,
            "rounds x repeats": f"{options.rounds} x {options.repeats}",
        }
        write_results(options.name, environment, settings, results)


if __name__ == "__main__":
    main()
