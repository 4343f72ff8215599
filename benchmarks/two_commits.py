"""What a change costs: generated tokens per second of this checkout beside those of an earlier commit.

Both run the same engine benchmark, router and two expert processes, and generate in turn, a second or so each, while
the other one idles: what the machine does meanwhile befalls both. Where a process's memory lies is drawn anew with
every pair of processes (it makes one or the other faster by several percent for as long as they live), so that only
several pairs tell the two apart. The earlier commit is checked out beside the repository and removed afterwards; it
runs with this checkout's virtual environment.

    python benchmarks/two_commits.py --before f12849d --model ~/.cache/herd-peers/random-llama4
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import IO

_ROOT = Path(__file__).resolve().parent.parent
_PROMPT_TOKENS = 128
_TURN_S = 300


def work(root: Path, options: argparse.Namespace) -> None:
    """Generate with one checkout, a turn for each number of sequences read; print the tokens/s of each turn."""
    sys.path[:0] = [str(root), str(root / "benchmarks"), str(root / "benchmarks" / "peers")]
    from herd_worker import HerdEngine  # that checkout's

    settings = SimpleNamespace(
        checkpoint=str(options.model),
        experts="split",
        dtype="bfloat16",
        quantize="none",
        router_threads=2,
        expert_threads=1,
        replicas=2,
        step_tokens=2048,
        slots=32,
        context=1024,
        kv_gib=1,
    )
    draw = random.Random(0)
    with ExitStack() as stack:
        engine = HerdEngine(settings, stack)

        def tokens_per_s(sequences: int) -> float:
            prompts = [[draw.randrange(3, 32_000) for _ in range(_PROMPT_TOKENS)] for _ in range(sequences)]
            times: list[list[float]] = [[] for _ in prompts]
            engine.generate(prompts, options.tokens, lambda index, _: times[index].append(time.perf_counter()))
            first = max(each[0] for each in times)
            return sum(at > first for each in times for at in each) / (time.perf_counter() - first)

        tokens_per_s(4)
        print("ready", flush=True)
        for line in sys.stdin:
            print(tokens_per_s(int(line)), flush=True)


class Checkout:
    """One checkout's processes, alive until its context ends.

    Raises SystemExit with what they wrote where they end early or say nothing for `_TURN_S` seconds.
    """

    def __init__(self, root: Path, options: argparse.Namespace, stack: ExitStack) -> None:
        command = [sys.executable, __file__, "--worker", str(root), "--model", str(options.model)]
        self._root = root
        self._errors: IO[str] = stack.enter_context(tempfile.TemporaryFile("w+"))  # noqa: SIM115
        self._process = subprocess.Popen(
            [*command, "--tokens", str(options.tokens)],
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        stack.callback(self._end)
        self._answer()

    def tokens_per_s(self, sequences: int) -> float:
        """Let it generate one turn."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{sequences}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], _TURN_S)
        line = self._process.stdout.readline() if readable else ""
        if not line:
            self._errors.seek(0)
            raise SystemExit(f"expected {self._root} to be measured, found:\n{self._errors.read()[-2000:]}")
        return line

    def _end(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def measure_pair(before: Path, number: int, options: argparse.Namespace) -> dict[int, tuple[float, float]]:
    """Start both checkouts and let them generate in turn; return median rates (before, now) by number of sequences."""
    with ExitStack() as stack:
        order = [before, _ROOT] if number % 2 == 0 else [_ROOT, before]
        both = {root: Checkout(root, options, stack) for root in order}
        found = {}
        for sequences in options.sequences:
            rates: dict[Path, list[float]] = {root: [] for root in order}
            for turn in range(options.turns):
                for root in order if turn % 2 == 0 else reversed(order):
                    rates[root].append(both[root].tokens_per_s(sequences))
            found[sequences] = (median(rates[before]), median(rates[_ROOT]))
    return found


def compare(before: Path, options: argparse.Namespace) -> dict[str, object]:
    """Measure pair after pair; return rates and ratios (now over before) by number of sequences."""
    pairs = []
    for number in range(options.pairs):
        pairs.append(measure_pair(before, number, options))
        shown = ", ".join(
            f"{then:.1f} and {now:.1f} tokens/s at {sequences} ({now / then:.3f})"
            for sequences, (then, now) in pairs[-1].items()
        )
        print(f"pair {number + 1} of {options.pairs}: {shown}", flush=True)
    return {str(sequences): _row([pair[sequences] for pair in pairs]) for sequences in options.sequences}


def _row(rates: list[tuple[float, float]]) -> dict[str, object]:
    ratios = [now / then for then, now in rates]
    draw = random.Random(0)
    medians = sorted(median(draw.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {
        "before": median(then for then, _ in rates),
        "now": median(now for _, now in rates),
        "ratio": median(ratios),
        "ratio_95": [medians[50], medians[-51]],  # where the median lies in 95 of 100 draws of these pairs (bootstrap)
        "ratios": sorted(ratios),
    }


def main() -> None:
    """Compare as told by the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="HEAD~1", help="the earlier commit (HEAD~1)")
    parser.add_argument("--model", type=Path, required=True, help="a folder that random_llama4.py wrote")
    parser.add_argument("--pairs", type=int, default=12, help="of processes, one after the other (12)")
    parser.add_argument("--turns", type=int, default=8, help="of each pair and number of sequences (8)")
    parser.add_argument("--tokens", type=int, default=64, help="new ones per sequence (64)")
    parser.add_argument("--sequences", type=int, nargs="+", default=[8, 32], help="at once (8 32)")
    parser.add_argument("--name", default="two_commits", help="of the result file (two_commits)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.worker, options)
        return
    sys.path.insert(0, str(_ROOT))
    from benchmarks.environment import RESULTS, describe_environment

    environment = describe_environment("torch", "grpcio")
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        subprocess.run(["git", "worktree", "add", "--detach", "-q", before, options.before], cwd=_ROOT, check=True)
        try:
            rows = compare(before, options)
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=_ROOT, check=True)
    drawn = {"before": options.before, "pairs": options.pairs, "turns": options.turns}
    result = {"environment": environment, **drawn, "sequences": rows}
    (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
