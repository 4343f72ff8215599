"""An expert group that grows from one replica to three and shrinks to one again under load, as users' clients see it.

`herd serve` may have up to three replicas of the model's one group, and takes one that computes 2 % of its time to be
in full use: so streams drive it to three, and one stream every ten seconds lets it fall back. Every stream is compared
token by token with the same request's stream before anything scaled; in bfloat16, where a token may depend on who
shares its steps, only whether it ended is looked at. Of each replica that came, its own account of its start is
printed, from when its process was up, or, warm, from when it was given the replica.

    python benchmarks/scale_up.py
    python benchmarks/scale_up.py --model /tmp/random-llama4 --use 0.1 --set router.dtype=bfloat16 --name scale_up_750m
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import grpc

from benchmarks.chaos.application import Application
from benchmarks.chaos.comparison import compare
from benchmarks.chaos.load import Load
from benchmarks.chaos.requests import make_requests
from benchmarks.environment import RESULTS, describe_environment
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1 import inference_pb2_grpc

SETTINGS = ("experts.groups=1", "scaling.experts_max_replicas=3", "scaling.down_after_s=2")
GOAL_S = 3.0
"""From a replica's process being up to its first dispatch."""
_MOST_S = 180.0
_QUIET_PERIOD_S = 10.0
_ASK_S = 20.0
_POLL_S = 0.1
_PHASE = re.compile(r"([a-z ]+?) ([0-9.]+) s")


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """How a replica started."""

    text: str
    """Its own account."""
    is_warm: bool
    """Whether it found a process that had everything imported."""
    first_dispatch_s: float
    """Seconds from its process being up until it had computed for a router, maybe while it was still loading."""
    ready_s: float
    """Seconds from its process being up until it had loaded all."""


class Watch:
    """Asks a Herd who serves.

    Args:
        grpc_port: where it answers.
    """

    def __init__(self, grpc_port: int) -> None:
        self._address = f"127.0.0.1:{grpc_port}"

    def info(self) -> pb.GetServerInfoResponse:
        """Return what it says of itself."""
        with grpc.insecure_channel(self._address, [("grpc.enable_http_proxy", 0)]) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            return stub.GetServerInfo(pb.GetServerInfoRequest(), timeout=_ASK_S, wait_for_ready=True)

    def num_replicas(self) -> int:
        """Return how many expert replicas have loaded all of their group."""
        return sum(set(each.home_ids) <= set(each.expert_ids) for each in self.info().expert_replicas)

    def starts(self) -> dict[str, Start]:
        """Return how each replica started, by its name."""
        found = {}
        for event in self.info().events:
            if "first dispatch" in event.text:
                phases = {name.strip(" ,"): float(seconds) for name, seconds in _PHASE.findall(event.text)}
                found[event.subject] = Start(
                    text=event.text,
                    is_warm="warm" in event.text,
                    first_dispatch_s=phases["first dispatch"],
                    ready_s=phases["ready"],
                )
        return found


def main() -> int:
    """Grow, shrink, print and write the result; return 1 if a stream differs."""
    options = _parse()
    settings = (*SETTINGS, f"scaling.experts_use={options.use}", *options.set)
    with Application(settings, model=options.model, start_s=600) as application:
        watch, requests = Watch(application.grpc_port), make_requests(options.requests, options.max_tokens)
        print("asking each request once, with one replica", flush=True)
        reference = Load(application.grpc_port, requests, 4).run_each_once()
        time.sleep(options.settle)  # until spare processes are there
        before = watch.starts()
        busy = Load(application.grpc_port, requests, options.streams)
        grown_s = _load_until(busy, lambda: watch.num_replicas() == 3, options.after, "three replicas")
        starts = {name: start for name, start in watch.starts().items() if name not in before}
        quiet = Load(application.grpc_port, requests, 1, period_s=_QUIET_PERIOD_S)
        shrunk_s = _load_until(quiet, lambda: watch.num_replicas() == 1, _QUIET_PERIOD_S, "one replica")
    differences = compare(busy.records + quiet.records, reference)
    is_exact = not any(each.startswith(("router.dtype=bf", "router.dtype=float16")) for each in settings)
    outcome = differences.describe() if is_exact else f"{differences.streams} streams: {differences.failed} failed"
    result = {
        "environment": describe_environment("torch", "ray", "grpcio"),
        "model": "demo" if options.model is None else Path(options.model).name,
        "settings": settings,
        "streams_at_once": options.streams,
        "grown_s": grown_s,
        "shrunk_s": shrunk_s,
        "starts": {name: asdict(start) for name, start in starts.items()},
        "streams": {"streams": differences.streams, "failed": differences.failed}
        | (asdict(differences) if is_exact else {}),
    }
    print(f"1 to 3 replicas after {grown_s:.1f} s, 3 to 1 after {shrunk_s:.1f} s; {outcome}")
    for start in starts.values():
        met = "met" if start.first_dispatch_s <= GOAL_S else f"missed: {GOAL_S:g} s"
        print(f"{'warm' if start.is_warm else 'cold'}: {start.text} ({met})")
    if options.name:
        (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    return int(differences.failed > 0 or (is_exact and not differences.is_clean))


def _load_until(load: Load, holds: Callable[[], bool], after_s: float, what: str) -> float:
    """Keep streams running until something holds and for a while after it; return when it held first.

    Raises:
        TimeoutError: it never did.
    """
    began_s = time.monotonic()
    load.start()
    try:
        while not holds():
            if time.monotonic() - began_s > _MOST_S:
                raise TimeoutError(f"expected {what} within {_MOST_S:g} s, found another number")
            time.sleep(_POLL_S)
        held_s = time.monotonic() - began_s
        time.sleep(after_s)
    finally:
        load.stop()
    return held_s


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder of the model (the demo)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of Herd; repeatable")
    parser.add_argument("--use", type=float, default=0.02, help="part of its time that a replica is to compute (0.02)")
    parser.add_argument("--streams", type=int, default=8, help="streams at once while it grows (8)")
    parser.add_argument("--requests", type=int, default=20, help="different requests (20)")
    parser.add_argument("--max-tokens", type=int, default=48, help="of the longest answer (48)")
    parser.add_argument("--settle", type=float, default=20, help="seconds before the load begins (20)")
    parser.add_argument("--after", type=float, default=15, help="seconds of load with three replicas (15)")
    parser.add_argument("--name", default="scale_up", help="of the file under benchmarks/results; empty: none")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
