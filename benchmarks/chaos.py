"""Faults under load: real processes, real signals, every stream compared with its fault-free run.

Starts `herd serve` on free ports, asks a fixed list of requests once without faults, then keeps asking them with
many streams at once while processes are killed (SIGKILL), stopped (SIGSTOP: they hang) or starved (they run a
twentieth of the time). Prints what was lost, doubled and changed, which requests failed, the longest gap between
tokens, throughput before, during and after, and how long it took until everything was back.

    python benchmarks/chaos.py --list                                   the scenarios
    python benchmarks/chaos.py --scenario expert-kill --repeat 20       one holder of two, twenty times
    python benchmarks/chaos.py --scenario expert-stop directory-kill controller-kill
    python benchmarks/chaos.py --scenario storm --seconds 300           a kill every few seconds for five minutes
    python benchmarks/chaos.py --scenario router-kill --set router.replicas=3 --streams 32
    python benchmarks/chaos.py --scenario expert-stop --hold 120        longer than Ray Serve takes for a hang
    python benchmarks/chaos.py --scenario wire-drop wire-corrupt        single messages to one expert replica of two
    python benchmarks/chaos.py --scenario none                          the control: what differs without any fault

A scenario's files are `benchmarks/results/chaos.json`, `chaos.md` and `chaos-SCENARIO.svg`; other scenarios' results
in them stay. Exits with 1 if a promise was broken: a stream harmed (but one whose own front door died), something that
did not come back, or something left behind.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

# Wherever this is started: `benchmarks` and `tests`, whose proxy harms messages, are folders of the checkout.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models.cpu.environment import CPU_ENVIRONMENT

os.environ.update(CPU_ENVIRONMENT | os.environ)  # before torch, which reads it once

from benchmarks.chaos.outcome import Outcome
from benchmarks.chaos.plot import draw_throughput
from benchmarks.chaos.report import as_table, details, record_of, write_results
from benchmarks.chaos.run import Run
from benchmarks.chaos.run_options import RunOptions
from benchmarks.chaos.scenarios import SCENARIOS
from benchmarks.chaos.wire_scenarios import WIRE_SCENARIOS
from benchmarks.environment import RESULTS, describe_environment


def main() -> int:
    """Run scenarios, print and record what they found."""
    options = _parser().parse_args()
    if options.list:
        summaries = {each.name: each.summary for each in SCENARIOS.values()}
        summaries |= {each.name: each.summary for each in WIRE_SCENARIOS.values()}
        for name, summary in summaries.items():
            print(f"{name:<26}{summary}")
        return 0
    environment = describe_environment("ray", "grpcio", "torch")
    run_options = RunOptions(
        streams=options.streams,
        requests=options.requests,
        max_tokens=options.max_tokens,
        period_s=options.period,
        repeat=options.repeat,
        seconds=options.seconds,
        seed=options.seed,
        hold_s=options.hold,
        settings=tuple(options.set),
    )
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)

    outcomes: list[Outcome] = []
    for name in options.scenario:
        if name in WIRE_SCENARIOS:
            from benchmarks.chaos.wire import WireRun  # imports torch, which the others do without

            outcome = WireRun(WIRE_SCENARIOS[name], run_options, say).run()
        else:
            outcome = Run(SCENARIOS[name], run_options, say).run()
        outcomes.append(outcome)
        for line in details(record_of(outcome)):
            say(f"{name}: {line}")
        print(as_table([record_of(outcome)]), flush=True)
        if options.name:
            RESULTS.mkdir(exist_ok=True)
            draw_throughput(outcome, RESULTS / f"{options.name}-{name}.svg")
            write_results(RESULTS, options.name, environment, [outcome])
    print(f"\n{as_table([record_of(outcome) for outcome in outcomes])}")
    return 0 if all(outcome.holds for outcome in outcomes) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--list", action="store_true", help="name the scenarios and end")
    add(
        "--scenario",
        nargs="+",
        choices=[*SCENARIOS, *WIRE_SCENARIOS],
        default=["expert-kill"],
        metavar="NAME",
        help="see --list",
    )
    add("--repeat", type=int, default=1, help="faults, each after the one before is over (1)")
    add("--seconds", type=float, default=300.0, help="how long a storm lasts (300)")
    add("--hold", type=float, help="seconds that a process hangs or is slow (as the scenario says)")
    add("--streams", type=int, default=16, help="at once (16)")
    add("--requests", type=int, default=48, help="different ones, asked in turn (48)")
    add("--max-tokens", type=int, default=96, help="of the longest; the shortest has half as many (96)")
    add("--period", type=float, help="seconds from a stream's beginning to the next one's (none: as soon as it ends)")
    add("--seed", type=int, default=1, help="chooses targets and times (1)")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="further settings of Herd")
    add("--name", default="chaos", help="of the files under benchmarks/results; empty: write none (chaos)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
