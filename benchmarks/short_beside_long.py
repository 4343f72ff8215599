"""Time to the first token of short requests while a long prompt is computed, on a Herd as users run it.

Short requests come at a fixed rate, whether the last one was answered or not. They are measured alone, from the
moment a long prompt is sent until its first token, and alone again. The goal: their p99 is at most 1.5 times as long.
The same can be measured without routers of their own for long requests, and with other settings of those.

    python benchmarks/random_llama4.py /tmp/random-llama4
    python benchmarks/short_beside_long.py /tmp/random-llama4 --tokens 16000
    python benchmarks/short_beside_long.py /tmp/random-llama4 --tokens 16000 --no-pool --name ""
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import grpc

from benchmarks.chaos.application import Application
from benchmarks.environment import describe_environment
from benchmarks.rounds import write_rounds
from protos.channel import channel_options
from protos.inference.v1 import inference_pb2 as pb
from protos.inference.v1.inference_pb2_grpc import InferenceServiceStub

GOAL = 1.5
SHORT_S, LONG_S = 300.0, 3600.0
"""Seconds that a request of either kind may take."""
_MOST_AT_ONCE = 256


class Client:
    """Asks a Herd and measures.

    Args:
        address: of its gRPC API.
        options: of the command line.
        seed: of the prompts.
    """

    def __init__(self, address: str, options: argparse.Namespace, seed: int) -> None:
        self._stub = InferenceServiceStub(grpc.insecure_channel(address, options=channel_options()))
        self._options = options
        self._dice = random.Random(seed)
        self._pool = ThreadPoolExecutor(_MOST_AT_ONCE)
        self.num_reports = 0

    def ttft_s(self, num_prompt: int, max_tokens: int, timeout_s: float) -> float:
        """Return the seconds to a request's first token, once all have come."""
        ids = [self._dice.randrange(3, self._options.vocabulary) for _ in range(num_prompt)]
        request = pb.GenerateRequest(
            token_ids=pb.TokenIds(ids=ids),
            sampling=pb.Sampling(temperature=0),
            stopping=pb.Stopping(max_tokens=max_tokens, ignore_eos=True),
        )
        began, first_s = time.perf_counter(), None
        for response in self._stub.Generate(request, timeout=timeout_s):
            self.num_reports += response.HasField("progress")
            if response.HasField("delta") and first_s is None:
                first_s = time.perf_counter() - began
        assert first_s is not None, "a request ends with its last token"
        return first_s

    def short(self) -> float:
        """Send a short request; return the seconds to its first token."""
        return self.ttft_s(self._options.short_tokens, self._options.short_answer, SHORT_S)

    def long(self) -> float:
        """Send a long request; return the seconds to its first token."""
        return self.ttft_s(self._options.tokens, 1, LONG_S)

    def shorts_until(self, ended: threading.Event, most: int | None = None) -> list[float]:
        """Send short requests at the rate until something has ended; return the seconds of each, in order."""
        asked: list[Future[float]] = []
        began = time.perf_counter()
        while not ended.is_set() and (most is None or len(asked) < most):
            asked.append(self._pool.submit(self.short))
            ended.wait(max(began + len(asked) / self._options.rate - time.perf_counter(), 0))
        return [each.result() for each in asked]

    def shorts_beside_long(self) -> tuple[list[float], float]:
        """Send a long request and short ones until its first token; return the seconds of those, and its own."""
        ended = threading.Event()
        long = self._pool.submit(self.long)
        long.add_done_callback(lambda _: ended.set())
        return self.shorts_until(ended), long.result()


def measure(options: argparse.Namespace) -> list[dict[str, float]]:
    """Serve the model and measure every round."""
    settings = [
        "router.dtype=bfloat16",
        f"model.context_length={options.tokens + 1024}",
        f"long.from_tokens={options.from_tokens if options.pool else 'null'}",
        f"router.kv_bytes={options.kv_gib << 30}",
        f"long.kv_bytes={options.kv_gib << 30}",
        "limits.request_timeout_s=3600",
        *options.set,
    ]
    rounds = []
    with Application(settings, model=options.checkpoint) as herd:
        for number in range(options.rounds):
            client = Client(herd.grpc_address, options, number)
            for _ in range(3):
                client.short()  # connections, threads and kernels are made
            client.ttft_s(options.from_tokens if options.pool else 512, 1, SHORT_S)
            alone = client.shorts_until(threading.Event(), options.alone // 2)
            beside, long_s = client.shorts_beside_long()
            alone += client.shorts_until(
                threading.Event(), options.alone - options.alone // 2
            )  # others use the machine
            found = {"long_s": long_s, "long_tokens_per_s": options.tokens / long_s, "reports": client.num_reports}
            for name, values in (("alone", alone), ("beside", beside)):
                found |= {f"{name}_requests": len(values), f"{name}_p50_ms": 1000 * statistics.median(values)}
                found[f"{name}_p99_ms"] = 1000 * _percentile(values, 0.99)
                found[f"{name}_most_ms"] = 1000 * max(values)
            found["p50_ratio"] = found["beside_p50_ms"] / found["alone_p50_ms"]
            found["p99_ratio"] = found["beside_p99_ms"] / found["alone_p99_ms"]
            rounds.append(found)
            print({name: round(value, 2) for name, value in found.items()}, file=sys.stderr, flush=True)
    return rounds


def _percentile(values: list[float], part: float) -> float:
    return sorted(values)[min(int(part * len(values)), len(values) - 1)]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of the model")
    parser.add_argument("--tokens", type=int, default=16_000, help="of the long prompt (16000)")
    parser.add_argument("--from-tokens", type=int, default=4096, help="long.from_tokens (4096)")
    parser.add_argument("--no-pool", dest="pool", action="store_false", help="without routers for long requests")
    parser.add_argument("--short-tokens", type=int, default=64, help="of a short prompt (64)")
    parser.add_argument("--short-answer", type=int, default=8, help="tokens of its answer (8)")
    parser.add_argument("--rate", type=float, default=2.0, help="short requests per second (2)")
    parser.add_argument("--alone", type=int, default=100, help="short requests measured without the long one (100)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    parser.add_argument("--kv-gib", type=int, default=2, help="GiB of KV cache of each router (2)")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="token ids to draw from (32000)")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of Herd; repeatable")
    parser.add_argument("--name", default="short_beside_long", help="of the result's files; empty: none")
    options = parser.parse_args()
    explanation = (
        f"Milliseconds to the first token of requests with {options.short_tokens} tokens, {options.rate:g} a second, "
        f"without and with a prompt of {options.tokens} tokens beside them, written by "
        f"`benchmarks/short_beside_long.py`. Goal: p99 at most {GOAL:g} times as long."
    )
    environment = describe_environment("torch", "grpcio", "ray")
    print(write_rounds("Short requests beside a long prompt", explanation, measure(options), options, environment))


if __name__ == "__main__":
    main()
