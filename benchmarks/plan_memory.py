"""Memory that `herd plan` counts, beside what a Herd with the planned settings takes.

    python -m benchmarks.plan_memory                      the demo model, on this machine
    python -m benchmarks.plan_memory --name plan_memory   and write benchmarks/results/plan_memory.json and .md

Plans the demo model for 4 GiB, starts `herd serve` with the settings of the plan, and reads what its processes have
resident: after the start, and after as many requests at once as were planned for. Pages that processes share, above all
of torch's libraries, count in each of them, in the plan as here. Of the cache only what was written is resident, so of
the plan only that is counted. Margin, room for copies and swap are not: nothing is in them.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from benchmarks.chaos.application import HERD, Application
from benchmarks.chaos.processes import Part, find_processes
from benchmarks.environment import RESULTS, describe_environment
from benchmarks.process_memory import memory_bytes
from cluster.launch.processes import descendants
from cluster.planner.advice import plan_or_refuse
from cluster.planner.assumptions import PROCESS_BYTES
from cluster.planner.capacity_plan import CapacityPlan
from cluster.planner.read_question import Texts, read_question
from cluster.planner.values import settings, split_known

_PROMPT, _OUTPUT = 256, 64
_UNUSED = ("margin", "room for copies", "KV swap", "KV global", "KV local", "free")


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison; bytes."""

    what: str
    planned: int
    found: int


def main() -> None:
    """Plan, start, measure, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concurrency", type=int, default=16, help="sequences at once (16)")
    parser.add_argument("--name", default="", help="write benchmarks/results/NAME.json and .md")
    options = parser.parse_args()
    environment = describe_environment("torch", "ray")
    plan = plan_demo(options.concurrency)
    known, _ = split_known(settings(plan))
    assignments = [f"{section}.{key}={value}" for section, keys in known.items() for key, value in keys.items()]
    with Application(assignments) as herd:
        idle = _resident(herd.pid)
        parts = {
            part: [memory_bytes(each.pid, "VmRSS") for each in find_processes(herd.pid) if each.part is part]
            for part in Part
        }
        _load(herd.grpc_address, options.concurrency)
        loaded = _resident(herd.pid)
    rows = compare(plan, idle, parts, loaded)
    table = "\n".join(
        [
            "| | planned, MB | found, MB | planned / found |",
            "|---|---:|---:|---:|",
            *(
                f"| {row.what} | {row.planned / 1e6:,.0f} | {row.found / 1e6:,.0f} | {row.planned / row.found:.2f} |"
                for row in rows
            ),
        ]
    )
    print(table)
    if options.name:
        _write(options.name, environment, assignments, rows, table)


def plan_demo(concurrency: int) -> CapacityPlan:
    """Return the plan that is measured."""
    return plan_or_refuse(read_question(Texts(model="demo", gpus="cpu", memory="4GiB", concurrency=concurrency)))


def compare(plan: CapacityPlan, idle: int, parts: Mapping[Part, Sequence[int]], loaded: int) -> list[Row]:
    """Return what is planned beside what was found.

    Args:
        plan: of one machine without GPUs.
        idle: bytes of all processes after the start.
        parts: bytes of each process of a kind then.
        loaded: bytes of all processes after the requests.
    """
    held, weights, slots = plan.memory.device_bytes(0), plan.question.model_bytes, plan.question.concurrency
    process = int(PROCESS_BYTES.value)
    always = sum(value for component, value in held.items() if component not in _UNUSED)
    # None of the prompts begin alike, and the prefix cache keeps them all.
    written = 2 * slots * plan.memory.router_layout.sequence_bytes(_PROMPT + _OUTPUT)
    return [
        Row("a router, at rest", weights.router + process, max(parts[Part.ROUTER])),
        Row("half of the experts, at rest", weights.experts // 2 + process, max(parts[Part.EXPERT])),
        Row("everything, at rest", always - held["workspace"], idle),
        Row(f"everything, after {2 * slots} requests, {slots} at once", always + written, loaded),
    ]


def _load(address: str, concurrency: int) -> None:
    """Answer twice as many requests as are there at once."""
    lengths = ["-i", str(_PROMPT), "-o", str(_OUTPUT)]
    requests = ["-c", str(concurrency), "-n", str(2 * concurrency)]
    subprocess.run([HERD, "bench", "--grpc", address, *requests, *lengths], check=True, stdout=subprocess.DEVNULL)


def _resident(root_pid: int) -> int:
    return sum(memory_bytes(pid, "VmRSS") for pid in [root_pid, *descendants(root_pid)])


def _write(name: str, environment: dict[str, str], assignments: list[str], rows: list[Row], table: str) -> None:
    document = {"environment": environment, "settings": assignments, "bytes": [asdict(row) for row in rows]}
    base = RESULTS / name
    base.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    facts = "\n".join(f"- {key}: {value}" for key, value in environment.items())
    head = "# Memory as planned and as found\n\nWritten by `benchmarks/plan_memory.py`; see docs/planning.md.\n\n"
    base.with_suffix(".md").write_text(f"{head}{table}\n\n{facts}\n- settings: {' '.join(assignments)}\n")


if __name__ == "__main__":
    main()
