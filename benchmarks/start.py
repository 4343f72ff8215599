"""How long `herd serve` takes from the command to its first answer, and what it holds in memory while nobody asks.

    python -m benchmarks.start --rounds 5
    python -m benchmarks.start --rounds 5 --name start    and write benchmarks/results/start.json and .md

Memory is proportional: a page that several processes share, above all of torch's libraries, counts in parts, so
figures of processes add up to what the machine gives.
"""

from __future__ import annotations

import argparse
import subprocess
import time
from collections import defaultdict

from benchmarks.chaos.application import HERD, Application
from benchmarks.chaos.processes import find_processes, title_of
from benchmarks.environment import describe_environment
from benchmarks.process_memory import memory_bytes
from benchmarks.rounds import write_rounds
from cluster.launch.processes import descendants
from cluster.warm_process import SPARE

_EXPLANATION = (
    "`herd serve` with the demo model and its defaults, each round from the command on, Python's own start included. "
    "Memory (proportional set size) once nobody has asked for a while; `Ray's own`: raylet, GCS, its dashboard's and "
    "its agents' processes."
)


def main() -> None:
    """Start, ask, rest, read, end; as often as asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="starts (5)")
    parser.add_argument("--rest", type=float, default=20.0, help="seconds without a request before memory is read (20)")
    parser.add_argument("--name", default="", help="write benchmarks/results/NAME.json and .md")
    options = parser.parse_args()
    environment = describe_environment("torch", "ray")
    rounds = [measure(options.rest) for _ in range(options.rounds)]
    print(write_rounds("Start and rest", _EXPLANATION, rounds, options, environment))


def measure(rest_s: float) -> dict[str, float]:
    """Return one round's seconds and MB, by name."""
    began = time.monotonic()
    with Application() as herd:
        figures = {"ready, s": time.monotonic() - began}
        began = time.monotonic()
        _ask(herd.grpc_address)
        figures["first answer after that, its client's start included, s"] = time.monotonic() - began
        time.sleep(rest_s)
        return figures | {f"{name}, MB": found / 1e6 for name, found in memory_by_process(herd.pid).items()}


def memory_by_process(root_pid: int) -> dict[str, int]:
    """Return the proportional bytes of an application's processes by what they are, and of all of them."""
    names = {each.pid: each.name for each in find_processes(root_pid)} | {root_pid: "herd serve"}
    held: defaultdict[str, int] = defaultdict(int)
    for pid in [root_pid, *descendants(root_pid)]:
        held[names.get(pid) or _other(pid)] += memory_bytes(pid, "Pss")
    return dict(sorted(held.items())) | {"all": sum(held.values())}


def _ask(address: str) -> None:
    command = [HERD, "generate", "--address", address, "What does len do?"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=60)


def _other(pid: int) -> str:
    """Name a process that is no part of the application's work."""
    return "spare process" if title_of(pid).startswith(SPARE) else "Ray's own"


if __name__ == "__main__":
    main()
