"""What a change costs: generated tokens per second of this checkout beside those of an earlier commit.

Both run the same engine benchmark, router and two expert processes, in turn, a new process each time and every other
round the other way round; ratios are taken round by round. The earlier commit is checked out beside the repository and
removed afterwards; it runs with this checkout's virtual environment.

    python benchmarks/two_commits.py --before f12849d --model ~/.cache/herd-peers/random-llama4
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from types import SimpleNamespace

_ROOT = Path(__file__).resolve().parent.parent
_PROMPT_TOKENS = 128


def work(root: Path, options: argparse.Namespace) -> None:
    """Measure one checkout in this process; print tokens/s by number of sequences."""
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
        found = {number: median(tokens_per_s(number) for _ in range(3)) for number in options.sequences}
    print(json.dumps(found), flush=True)


def measure(root: Path, options: argparse.Namespace) -> dict[int, float]:
    """Measure one checkout in a process of its own."""
    command = [sys.executable, __file__, "--worker", str(root), "--model", str(options.model)]
    command += ["--tokens", str(options.tokens), "--sequences", *map(str, options.sequences)]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise SystemExit(f"expected {root} to be measured, found:\n{done.stderr[-2000:]}")
    return {int(number): rate for number, rate in json.loads(done.stdout.splitlines()[-1]).items()}


def compare(before: Path, options: argparse.Namespace) -> dict[str, object]:
    """Measure both in turn; return rates and ratios."""
    rates: dict[str, list[dict[int, float]]] = {"before": [], "now": []}
    for number in range(options.rounds):
        pair = [("before", before), ("now", _ROOT)]
        for name, root in pair if number % 2 == 0 else reversed(pair):
            rates[name].append(measure(root, options))
            print(f"round {number + 1} of {options.rounds}: {name:<7}{_shown(rates[name][-1])}", flush=True)
    rows = {}
    for number in options.sequences:
        ratios = sorted(now[number] / then[number] for then, now in zip(rates["before"], rates["now"], strict=True))
        rows[str(number)] = {
            "before": median(each[number] for each in rates["before"]),
            "now": median(each[number] for each in rates["now"]),
            "ratio": median(ratios),
            "ratios": ratios,
        }
    return rows


def _shown(rates: dict[int, float]) -> str:
    return ", ".join(f"{rate:.1f} tokens/s at {number}" for number, rate in rates.items())


def main() -> None:
    """Compare as told by the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", default="HEAD~1", help="the earlier commit (HEAD~1)")
    parser.add_argument("--model", type=Path, required=True, help="a folder that random_llama4.py wrote")
    parser.add_argument("--rounds", type=int, default=8, help="(8)")
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
    result = {"environment": environment, "before": options.before, "rounds": options.rounds, "sequences": rows}
    (RESULTS / f"{options.name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
