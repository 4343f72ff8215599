"""Measures what the front door costs: tokens/s through HTTP and gRPC streaming against the engine called in process.

Starts `herd serve` and, beside it, the same engine in a process that calls it directly, with as many expert processes
and threads; then asks the one and the other in turn for the same streams. Clients run in one process each, on the same
machine: what they cost is not the server's fault, but is taken from the same cores.

    python benchmarks/front_door.py                                the demo model, 32 streams
    python benchmarks/front_door.py --model FOLDER --name front_door_750m
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

# Wherever this is started: `benchmarks` is a folder of the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.chaos.application import Application
from benchmarks.environment import RESULTS, ROOT, describe_environment
from cluster.config_source import load_config
from cluster.launch.processes import descendants
from cluster.launch.start_checks import plan_start

GOAL = 0.9
WAYS = ("engine", "http", "grpc")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_START_S = 300.0
_NAMES = {
    "FrontDoor": "front door",
    ":Router": "router",
    ":Experts": "experts",
    "-m experts": "experts",
}
_PREAMBLE = f"""# What the front door costs

Written by `benchmarks/front_door.py`. Goal: tokens/s through each API at least {GOAL} of the engine's called in
process. All streams begin at once; tokens/s counts from the first request to the last end, prompts included. The ratio
is taken round by round, the three ways alternating; "by round" is its middle half. CPU is of all threads of the
processes named, in milliseconds per generated token; "Ray" is its controller, raylet, GCS and the rest.
"""


class Way:
    """A process that runs rounds.

    Args:
        arguments: of front_door_processes.py.
    """

    def __init__(self, arguments: list[str]) -> None:
        script = Path(__file__).with_name("front_door_processes.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        self._answer()

    def run(self, round_: dict[str, int]) -> dict[str, float]:
        """Run a round."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(round_) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} failed")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.communicate(timeout=60)


def cpu_seconds(roots: list[int]) -> dict[str, float]:
    """Return the CPU seconds of processes and those below them so far, by what they are."""
    seconds: dict[str, float] = {}
    for pid in {pid for root in roots for pid in (root, *descendants(root))}:
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        name = next((name for part, name in _NAMES.items() if part in command), "Ray")
        if "front_door_processes" in command:
            name = "engine" if " engine" in command else "client"
        seconds[name] = seconds.get(name, 0.0) + (int(fields[11]) + int(fields[12])) / _TICKS_PER_S
    return seconds


def measure(options: argparse.Namespace, assignments: list[str]) -> list[dict[str, dict]]:
    """Return every round's results by way."""
    plan = plan_start(load_config(None, assignments))
    round_ = {
        "streams": options.streams,
        "prompt_tokens": options.prompt_tokens,
        "max_tokens": options.max_tokens,
        "vocab_size": min(plan.config.vocab_size, 1000),
    }
    assignments = [*assignments, f"router.kv_bytes={plan.engine_limits.kv_bytes}"]  # alike, whatever memory is free
    settings = [part for each in assignments for part in ("--set", each)]
    with ExitStack() as stack:
        application = stack.enter_context(Application(assignments, start_s=_START_S))
        addresses = {"http": f"127.0.0.1:{application.http_port}", "grpc": f"127.0.0.1:{application.grpc_port}"}
        ways: dict[str, Way] = {}
        for name in options.ways:
            arguments = settings if name == "engine" else ["--address", addresses[name]]
            ways[name] = Way([name, *arguments])
            stack.callback(ways[name].close)
        for way in ways.values():
            way.run({**round_, "max_tokens": 8})
        rounds = []
        for number in range(options.rounds):
            order = list(ways) if number % 2 == 0 else list(reversed(ways))
            rounds.append({name: _run(ways[name], round_, application.pid, name) for name in order})
            print(" ".join(f"{name} {rounds[-1][name]['tokens_per_s']:.0f}" for name in ways), flush=True)
        return rounds


def _run(way: Way, round_: dict[str, int], server_pid: int, name: str) -> dict:
    roots = [way.process.pid, *([] if name == "engine" else [server_pid])]
    before = cpu_seconds(roots)
    answer = way.run(round_)
    after = cpu_seconds(roots)
    expected = round_["streams"] * round_["max_tokens"]
    if answer["tokens"] != expected:
        raise SystemExit(f"{name}: expected {expected} tokens, found {answer['tokens']}")
    return {
        "tokens_per_s": answer["tokens"] / answer["seconds"],
        "tokens_per_message": answer["tokens"] / answer["messages"],
        "cpu_ms_per_token": {
            part: (total - before.get(part, 0.0)) / answer["tokens"] * 1000 for part, total in after.items()
        },
    }


def summarise(rounds: list[dict[str, dict]]) -> dict[str, dict]:
    """Return medians, spread and ratios by way."""
    summary = {}
    for name in rounds[0]:
        speeds = [each[name]["tokens_per_s"] for each in rounds]
        summary[name] = {
            "tokens_per_s": statistics.median(speeds),
            "tokens_per_s_quartiles": quartiles(speeds),
            "tokens_per_message": statistics.median(each[name]["tokens_per_message"] for each in rounds),
            "cpu_ms_per_token": {
                part: statistics.median(each[name]["cpu_ms_per_token"][part] for each in rounds)
                for part in rounds[0][name]["cpu_ms_per_token"]
            },
        }
        if "engine" in rounds[0]:
            ratios = [each[name]["tokens_per_s"] / each["engine"]["tokens_per_s"] for each in rounds]
            summary[name] |= {"ratio": statistics.median(ratios), "ratio_quartiles": quartiles(ratios)}
    return summary


def quartiles(values: list[float]) -> list[float]:
    """Return the ends of the middle half."""
    if len(values) < 2:
        return [values[0], values[0]]
    found = statistics.quantiles(values, n=4, method="inclusive")
    return [found[0], found[2]]


def as_table(summary: dict[str, dict]) -> str:
    """Return the results as a Markdown table."""
    parts = ["engine", "router", "experts", "front door", "Ray", "client"]
    lines = [
        f"| way | tokens/s | spread | ratio | by round | tokens/message | {' | '.join(f'{p} ms' for p in parts)} |",
        "|---|---:|---|---:|---|---:|" + "---:|" * len(parts),
    ]
    for name, each in summary.items():
        low, high = each["tokens_per_s_quartiles"]
        ratio_low, ratio_high = each.get("ratio_quartiles", (0, 0))
        cpu = each["cpu_ms_per_token"]
        cells = " | ".join(f"{cpu[part]:.2f}" if part in cpu else "" for part in parts)
        lines.append(
            f"| {name} | {each['tokens_per_s']:.1f} | {low:.1f} to {high:.1f} | {each.get('ratio', 0):.2f} "
            f"| {ratio_low:.2f} to {ratio_high:.2f} | {each['tokens_per_message']:.2f} | {cells} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--set", action="append", default=[], help="further settings of Herd")
    parser.add_argument("--name", default="front_door", help="of the files under benchmarks/results; empty: write none")
    options = parser.parse_args()
    assignments = [f"model.path={options.model}", f"router.slots={options.streams}", *options.set]
    environment = describe_environment("ray", "grpcio", "uvicorn", "torch")
    summary = summarise(measure(options, assignments))
    print(as_table(summary))
    if options.name:
        settings = {
            "model": Path(options.model).name,
            "streams": options.streams,
            "tokens per stream": f"{options.prompt_tokens} + {options.max_tokens}",
            "rounds": options.rounds,
            "settings": ", ".join(assignments[1:]),
        }
        write_results(options.name, environment, settings, summary)


def write_results(name: str, environment: dict[str, str], settings: dict[str, object], summary: dict) -> None:
    """Write the numbers as JSON and, for people, as Markdown."""
    RESULTS.mkdir(exist_ok=True)
    document = {"environment": environment, "settings": settings, "goal": GOAL, "results": summary}
    (RESULTS / f"{name}.json").write_text(json.dumps(document, indent=2) + "\n")
    facts = "\n".join(f"- {key}: {value}" for key, value in (environment | settings).items())
    (RESULTS / f"{name}.md").write_text(f"{_PREAMBLE}\n{as_table(summary)}\n\n{facts}\n")


if __name__ == "__main__":
    main()
