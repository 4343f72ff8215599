"""Time between the tokens of running streams while a long prompt is computed beside them.

The goal: its p99 is at most twice that without the prompt. Eight streams generate; each round first measures them
alone, then with one prompt of 16,000 tokens that is in the queue until its first token. The experts are in two
processes behind gRPC, as they are served.

    python benchmarks/random_llama4.py /tmp/random-llama4
    python benchmarks/interference.py /tmp/random-llama4
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import sys
import threading
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "peers"))

from environment import describe_environment
from herd_worker import HerdEngine
from rounds import write_rounds

from router.request import (
    Ended,
    EngineEvent,
    GenerationRequest,
    PromptDone,
    PromptProgress,
    SamplingParams,
    TokenChosen,
)

GOAL = 2.0
STREAM_PROMPT = 128
WAIT_S = 1800.0


class Streams:
    """Sequences that generate until stopped, and when each of their tokens came.

    Args:
        engine: a started engine.
        vocabulary: token ids to draw prompts from.
        seed: of the prompts.
    """

    def __init__(self, engine: HerdEngine, vocabulary: int, seed: int) -> None:
        self._engine = engine.engine
        self._vocabulary = vocabulary
        self._dice = random.Random(seed)
        self._times: dict[str, list[float]] = defaultdict(list)
        self._ended = threading.Event()
        self._names: list[str] = []

    def start(self, count: int, max_tokens: int) -> None:
        """Start so many streams."""
        self._names = [f"stream-{time.monotonic_ns()}-{number}" for number in range(count)]
        for name in self._names:
            self._engine.submit(self._request(name, STREAM_PROMPT, max_tokens), self._listener(name))

    def stop(self) -> None:
        """Cancel them."""
        for name in self._names:
            self._engine.cancel(name)

    def long_prompt(self, num_tokens: int) -> float:
        """Compute a long prompt and its first token; return the seconds that took."""
        done = threading.Event()

        def listen(event: EngineEvent) -> None:
            if isinstance(event, TokenChosen | Ended):
                done.set()

        started_s = time.perf_counter()
        self._engine.submit(self._request(f"long-{time.monotonic_ns()}", num_tokens, 1), listen)
        if not done.wait(WAIT_S):
            raise TimeoutError(f"expected the prompt to be computed within {WAIT_S:.0f} s")
        return time.perf_counter() - started_s

    def gaps_ms(self, start_s: float, stop_s: float) -> list[float]:
        """Return the milliseconds between tokens that both came in [start, stop)."""
        gaps = []
        for name in self._names:
            times = [at_s for at_s in self._times[name] if start_s <= at_s < stop_s]
            gaps += [(late - early) * 1000 for early, late in itertools.pairwise(times)]
        return gaps

    def wait_tokens(self, each: int) -> None:
        """Return when every stream has so many tokens."""
        give_up_s = time.monotonic() + WAIT_S
        while min(len(self._times[name]) for name in self._names) < each:
            if time.monotonic() > give_up_s:
                raise TimeoutError(f"expected {each} tokens of each stream within {WAIT_S:.0f} s")
            time.sleep(0.01)

    def num_tokens(self) -> int:
        """Return the fewest tokens a stream has."""
        return min(len(self._times[name]) for name in self._names)

    def _listener(self, name: str):  # noqa: ANN202
        def listen(event: EngineEvent) -> None:
            if isinstance(event, TokenChosen):
                self._times[name].append(time.perf_counter())
            elif isinstance(event, Ended):
                raise RuntimeError(f"{name} ended while it was measured: {event}")
            assert isinstance(event, TokenChosen | PromptDone | PromptProgress)

        return listen

    def _request(self, name: str, num_prompt: int, max_tokens: int) -> GenerationRequest:
        prompt = tuple(self._dice.randrange(3, self._vocabulary) for _ in range(num_prompt))
        greedy = SamplingParams(temperature=0.0)
        return GenerationRequest(request_id=name, prompt_ids=prompt, max_tokens=max_tokens, sampling=greedy)


def measure_round(engine: HerdEngine, options: argparse.Namespace, seed: int) -> dict[str, float]:
    """Measure streams alone, then beside a long prompt."""
    streams = Streams(engine, options.vocabulary, seed)
    streams.start(options.streams, options.context - STREAM_PROMPT)
    streams.wait_tokens(16)
    alone_s = time.perf_counter()
    streams.wait_tokens(16 + options.tokens_alone)
    beside_s = time.perf_counter()
    prompt_s = streams.long_prompt(options.prompt)
    ended_s = time.perf_counter()
    alone, beside = streams.gaps_ms(alone_s, beside_s), streams.gaps_ms(beside_s, ended_s)
    streams.stop()
    found = {"prompt_s": prompt_s, "prompt_tokens_per_s": options.prompt / prompt_s}
    for name, gaps in (("alone", alone), ("beside", beside)):
        cuts = statistics.quantiles(gaps, n=100)
        found |= {f"{name}_p50_ms": cuts[49], f"{name}_p99_ms": cuts[98], f"{name}_most_ms": max(gaps)}
    found["p99_ratio"] = found["beside_p99_ms"] / found["alone_p99_ms"]
    found["p50_ratio"] = found["beside_p50_ms"] / found["alone_p50_ms"]
    return found


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="folder of the model")
    parser.add_argument("--prompt", type=int, default=16_000, help="tokens of the long prompt (16000)")
    parser.add_argument("--streams", type=int, default=8, help="streams that generate (8)")
    parser.add_argument("--tokens-alone", type=int, default=200, help="tokens of each measured without it (200)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--router-threads", type=int, default=2)
    parser.add_argument("--expert-threads", type=int, default=1)
    parser.add_argument("--name", default="interference", help="of the result's files")
    options = parser.parse_args()
    options.vocabulary, options.context = 32_000, options.prompt + 1024
    options.experts, options.replicas, options.quantize = "split", 2, "none"
    options.slots, options.kv_gib, options.step_tokens = 32, 2, 2048
    environment = describe_environment("torch", "grpcio")
    with ExitStack() as stack:
        engine = HerdEngine(options, stack)
        rounds = []
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds} ...", file=sys.stderr, flush=True)
            rounds.append(measure_round(engine, options, number))
            print({name: round(value, 2) for name, value in rounds[-1].items()}, file=sys.stderr, flush=True)
    explanation = (
        f"Milliseconds between the tokens of {options.streams} streams, without and with a prompt of {options.prompt} "
        f"tokens beside them, written by `benchmarks/interference.py`. Goal: p99 at most {GOAL:g} times as long."
    )
    print(write_rounds("Time between tokens beside a long prompt", explanation, rounds, options, environment))


if __name__ == "__main__":
    main()
