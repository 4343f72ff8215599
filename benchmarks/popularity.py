"""What happens when one expert suddenly gets most of the tokens: how soon a second copy takes its share.

A random model whose prompts decide which expert is popular (`random_llama4.py --favoured 1`) is served with its experts
in two processes. First all streams leave expert 0 alone and load the others alike; then most of them want it in every
layer. Watched are the directory's view (who holds a copy, who runs how many of its tokens) and the time between the
tokens of every stream.

    python benchmarks/popularity.py
    python benchmarks/popularity.py --streams 32 --seconds 60 --model /tmp/favoured
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles

# Wherever this is started: `benchmarks` is a folder of the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.chaos.application import Application
from benchmarks.chaos.load import Load
from benchmarks.chaos.record import StreamRecord
from benchmarks.chaos.requests import Request
from benchmarks.environment import RESULTS, describe_environment
from benchmarks.random_llama4 import RandomLlama4, write_random_llama4
from cluster.placement_load import imbalance

_POLL_S = 0.25
_HOT = 0
_HALF = 0.35
"""Part of the popular expert's tokens that a copy runs when it has "taken half". Replicas share it so that all they do
is even, and the one that it is at home with has fewer others: exactly half would leave them uneven."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """Who ran the popular expert's tokens at one moment."""

    at_s: float
    holders: int
    """Replicas that are announced for it."""
    shares: tuple[float, ...]
    """Part of its tokens that each of them ran, largest first."""
    part: float
    """Its part of all experts' tokens."""
    busiest: float
    """Tokens of the busiest replica over the mean of all; 1 is perfect balance."""


class Watch:
    """Asks the status page, in a thread, until stopped."""

    def __init__(self, http_port: int) -> None:
        self.samples: list[Sample] = []
        self._url = f"http://127.0.0.1:{http_port}/status.json"
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(_POLL_S):
            with urllib.request.urlopen(self._url, timeout=5) as response:
                replicas = json.load(response)["expert_replicas"]
            loads = [{int(expert): rate for expert, rate in each["tokens_per_s"].items()} for each in replicas]
            hot = sorted((load.get(_HOT, 0.0) for load in loads), reverse=True)
            total = sum(sum(load.values()) for load in loads)
            self.samples.append(
                Sample(
                    at_s=time.monotonic(),
                    holders=sum(_HOT in each["expert_ids"] for each in replicas),
                    shares=tuple(rate / sum(hot) for rate in hot) if sum(hot) else (),
                    part=sum(hot) / total if total else 0.0,
                    busiest=imbalance({str(number): sum(load.values()) for number, load in enumerate(loads)}),
                )
            )


def make_requests(count: int, popular: float, vocab: int, max_tokens: int) -> list[Request]:
    """Return requests of which about a part wants the popular expert throughout."""
    draw = random.Random(7)
    requests = []
    for number in range(count):
        low, high = (vocab // 2, vocab) if (number % 10) < popular * 10 else (3, vocab // 2)
        prompt_ids = tuple(draw.randrange(low, high) for _ in range(16))
        requests.append(Request(number=number, prompt_ids=prompt_ids, max_tokens=max_tokens, seed=None, logprobs=None))
    return requests


def gaps_ms(records: list[StreamRecord], begin_s: float, end_s: float) -> list[float]:
    """Return the milliseconds between a stream's messages that came between two moments."""
    return [
        seconds * 1e3
        for record in records
        for at_s, seconds in record.gaps()
        if begin_s <= at_s - seconds and at_s <= end_s
    ]


def spread_ms(gaps: list[float]) -> dict[str, float]:
    """Return median, 99th percentile and longest."""
    cuts = quantiles(gaps, n=100)
    return {"p50_ms": cuts[49], "p99_ms": cuts[98], "most_ms": max(gaps), "gaps": len(gaps)}


def run(options: argparse.Namespace) -> dict[str, object]:
    """Serve, shift, watch; return the figures."""
    model = RandomLlama4(favoured=1, layers=options.layers)
    write_random_llama4(options.model, model)
    even, shifted = (make_requests(200, popular, model.vocab, options.max_tokens) for popular in (0.0, options.popular))
    settings = [
        f"model.path={options.model}",
        "model.context_length=1024",
        "router.dtype=bfloat16",
        f"router.slots={options.streams}",
        "router.kv_bytes=600000000",
        "experts.threads=1",
    ]
    print("starting", flush=True)
    with Application(settings) as application:
        loads = [Load(application.grpc_port, requests, options.streams) for requests in (even, shifted)]
        loads[0].start()
        time.sleep(options.warm_s)
        watch = Watch(application.http_port)
        even_from = time.monotonic()
        print(f"balanced for {options.seconds} s", flush=True)
        time.sleep(options.seconds)
        shift_at = time.monotonic()
        loads[1].start()
        loads[0].stop()
        print(f"shifted for {options.seconds} s", flush=True)
        time.sleep(max(shift_at + options.seconds - time.monotonic(), 0))
        end_at = time.monotonic()
        watch.stop()
        loads[1].stop()
    failed = [each.error for load in loads for each in load.records if each.error is not None]
    after = [sample for sample in watch.samples if sample.at_s >= shift_at]
    copied_at = next((sample.at_s for sample in after if sample.holders > 1), None)
    halved_at = next((each.at_s for each in after if len(each.shares) > 1 and each.shares[1] >= _HALF), None)
    settled_at = (halved_at or end_at - options.seconds / 2) + 2
    records = [*loads[0].records, *loads[1].records]
    return {
        "failed": len(failed),
        "first_failure": failed[0] if failed else "",
        "popular_part": max(sample.part for sample in after),
        "second_copy_s": None if copied_at is None else copied_at - shift_at,
        "took_half_s": None if halved_at is None else halved_at - shift_at,
        "shares_at_the_end": [round(share, 3) for share in after[-1].shares],
        "busiest_over_mean": {
            "balanced": _median_busiest(watch.samples, even_from, shift_at),
            "most_after_the_shift": max(sample.busiest for sample in after),
            "shared": _median_busiest(after, settled_at, end_at),
        },
        "balanced": spread_ms(gaps_ms(loads[0].records, even_from, shift_at)),
        "until_shared": spread_ms(gaps_ms(records, shift_at, settled_at)),
        "shared": spread_ms(gaps_ms(loads[1].records, settled_at, end_at)),
    }


def _median_busiest(samples: list[Sample], begin_s: float, end_s: float) -> float:
    return median(sample.busiest for sample in samples if begin_s <= sample.at_s <= end_s)


def main() -> None:
    """Measure as told by the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("/tmp/herd-favoured"), help="where the model lies or shall")
    parser.add_argument("--layers", type=int, default=12, help="of the model (12)")
    parser.add_argument("--streams", type=int, default=64, help="at once (64)")
    parser.add_argument("--max-tokens", type=int, default=48, help="of each stream (48)")
    parser.add_argument("--popular", type=float, default=0.6, help="part of the streams that want one expert (0.6)")
    parser.add_argument("--warm-s", type=float, default=10.0, help="seconds before anything counts (10)")
    parser.add_argument("--seconds", type=float, default=40.0, help="before and after the shift (40)")
    options = parser.parse_args()
    figures = run(options)
    balanced, shared = figures["balanced"], figures["shared"]
    assert isinstance(balanced, dict)
    assert isinstance(shared, dict)
    figures["p99_ratio"] = shared["p99_ms"] / balanced["p99_ms"]
    text = json.dumps(
        {"environment": describe_environment("ray", "grpcio", "torch"), "options": _plain(options), "figures": figures},
        indent=1,
    )
    (RESULTS / "popularity.json").write_text(text + "\n")
    print(json.dumps(figures, indent=1))


def _plain(options: argparse.Namespace) -> dict[str, str]:
    return {name: str(value) for name, value in vars(options).items() if name != "model"}


if __name__ == "__main__":
    main()
