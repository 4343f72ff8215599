"""Simulates a day of a cluster in virtual time, with the very functions that scale and place a real Herd.

    python -m benchmarks.simulate                               a made-up day of Maverick on H100
    python -m benchmarks.simulate --model scout --gpu h200 --peak 300
    python -m benchmarks.simulate --trace azure.csv --scale 50  a recorded trace, every request counted 50 times
    python -m benchmarks.simulate --hours 1 --peak 50           a quick look

Three systems serve the same requests and are held to the same SLO:

    herd, elastic           routers and each expert group scaled by cluster/autoscaling.py, hot experts copied by
                            cluster/placement.py; aims at the largest part of its capacity that keeps the SLO
    herd, static            the fixed numbers with the fewest GPUs that keep the SLO, found by trying; its experts are
                            balanced perfectly at no cost
    whole models, elastic   the whole model per replica, scaled as a block by the policy that scales Herd's routers,
                            tuned alike

GPU-hours count replicas from the decision to start them to the end of their draining. Speeds are rooflines from the
models' shapes (benchmarks/simulation/roofline.py lists the assumptions): compare systems, do not promise tokens/s.
What is not in it: nodes that have to be bought or booted, networks shared with others, prefix caches, long contexts
beyond a router's memory. Same arguments and seed, same result. docs/elasticity.md says how to read it.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.environment import RESULTS, describe_environment
from benchmarks.simulation.hardware import MODELS
from benchmarks.simulation.report import as_table, draw
from benchmarks.simulation.serving import Slo
from benchmarks.simulation.sizing import size_static, tune_elastic, tune_whole
from benchmarks.simulation.systems import Outcome, Setting
from benchmarks.simulation.workload import Day, Workload, made_up, recorded, zipf
from cluster.bench.traces import read_trace
from cluster.planner.hardware import GPUS
from protos.errors import ServingError

GOAL = 0.375
"""GPU-hours that Herd has to save against the static one: what EaaS (arXiv 2509.17863) reports."""
_PERIOD_S = 3600.0


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    served = parser.add_argument_group("what is served, on what")
    served.add_argument("--model", choices=MODELS, default="maverick")
    served.add_argument("--gpu", choices=GPUS, default="h100")
    served.add_argument("--experts", choices=("bf16", "fp8", "int4"), default="fp8", help="format of routed experts")
    load = parser.add_argument_group("what is asked")
    load.add_argument("--trace", type=Path, help="Azure's CSV or Mooncake's JSON lines; default: a made-up day")
    load.add_argument("--scale", type=float, default=1.0, help="count every request of the trace so often")
    load.add_argument("--peak", type=float, default=600.0, help="made up: requests/s at the top of the wave")
    load.add_argument("--trough", type=float, default=0.15, help="made up: its lowest point, as a part of the top")
    load.add_argument("--hours", type=float, default=24.0, help="made up: how long; a wave takes 24")
    load.add_argument("--bursts", type=int, default=6, help="made up: bursts of three minutes a day")
    load.add_argument("--prompt", type=float, default=1155.0, help="made up: tokens of a prompt, mean")
    load.add_argument("--output", type=float, default=211.0, help="made up: tokens of an answer, mean")
    load.add_argument("--zipf", type=float, default=0.5, help="skew of expert popularity; 0: even")
    load.add_argument("--drift", type=float, default=0.05, help="part of the experts that change rank every hour")
    promise = parser.add_argument_group("what is promised")
    promise.add_argument("--ttft", type=float, default=2.0, help="seconds to the first token")
    promise.add_argument("--itl", type=float, default=0.1, help="seconds between tokens, mean of a request")
    promise.add_argument("--within", type=float, default=0.99, help="part of the requests that keep both")
    rest = parser.add_argument_group("circumstances")
    rest.add_argument("--failures", type=float, default=1e-3, help="deaths per GPU-hour")
    rest.add_argument("--load-gb", type=float, default=2.0, help="GB/s at which a GPU's weights are loaded")
    rest.add_argument("--budget", type=int, help="most GPUs at any time of elastic systems; default: no limit")
    rest.add_argument("--step", type=float, default=5.0, help="seconds of a time step")
    rest.add_argument("--seed", type=int, default=0)
    rest.add_argument("--name", default="", help="write benchmarks/results/simulate_NAME.json, .md and .svg")
    return parser.parse_args(arguments)


def workload_of(options: argparse.Namespace) -> Workload:
    """Return what is asked.

    Raises:
        InvalidRequest: the trace cannot be read.
    """
    rows = read_trace(options.trace) if options.trace else []
    hours = rows[-1].at_s / 3600 if rows else options.hours
    popularity = zipf(
        MODELS[options.model].num_experts,
        options.zipf,
        periods=int(hours) + 2,
        drift=options.drift,
        seed=options.seed,
    )
    if rows:
        return recorded(rows, scale=options.scale, step_s=options.step, popularity=popularity, period_s=_PERIOD_S)
    day = Day(
        peak_per_s=options.peak,
        trough=options.trough,
        bursts=options.bursts,
        prompt_tokens=options.prompt,
        output_tokens=options.output,
        hours=options.hours,
    )
    return made_up(day, step_s=options.step, popularity=popularity, period_s=_PERIOD_S, seed=options.seed)


def setting_of(options: argparse.Namespace) -> Setting:
    """Return the circumstances."""
    return Setting(
        model=replace(MODELS[options.model], expert_format=options.experts),
        gpu=GPUS[options.gpu],
        slo=Slo(ttft_s=options.ttft, token_s=options.itl, share=options.within),
        load_bytes_per_s=options.load_gb * 1e9,
        failures_per_gpu_hour=options.failures,
        budget=options.budget,
        seed=options.seed,
    )


def compare(setting: Setting, workload: Workload) -> tuple[list[Outcome], dict[str, str]]:
    """Return every system's outcome, and how each was sized.

    Raises:
        InvalidRequest: no static size keeps the SLO.
    """
    static = size_static(setting, workload)
    elastic = tune_elastic(setting, workload, static)
    whole = tune_whole(setting, workload)
    notes = {
        elastic.outcome.name: f"aims at {elastic.aim:.0%}, experts at {setting.expert_aim:.0%}",
        static.outcome.name: f"{static.routers} routers, {static.experts} experts",
        whole.outcome.name: f"aims at {whole.aim:.0%}",
    }
    return [elastic.outcome, static.outcome, whole.outcome], notes


def main() -> None:
    """Simulate, print, record."""
    options = parse()
    began = time.perf_counter()
    try:
        setting, workload = setting_of(options), workload_of(options)
        outcomes, notes = compare(setting, workload)
    except ServingError as error:
        raise SystemExit(f"simulate: {error.message}") from error
    table = as_table(outcomes, notes, setting.slo)
    print(table)
    elastic, static = outcomes[:2]
    saved = 1 - elastic.gpu_hours / static.gpu_hours
    hours = workload.num_steps * workload.step_s / 3600
    print(f"\nsaved {saved:.1%} of the GPU-hours (goal {GOAL:.1%}); {hours:g} h in {time.perf_counter() - began:.0f} s")
    if options.name:
        _write(options, outcomes, notes, workload, table, saved)


def _write(
    options: argparse.Namespace,
    outcomes: list[Outcome],
    notes: dict[str, str],
    workload: Workload,
    table: str,
    saved: float,
) -> None:
    """Write JSON, a page and a picture."""
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(options).items()}
    environment = describe_environment("numpy")
    document = {
        "environment": environment,
        "settings": settings,
        "goal": GOAL,
        "saved": saved,
        "sized": notes,
        "systems": [outcome.as_object() for outcome in outcomes],
    }
    base = RESULTS / f"simulate_{options.name}"
    base.with_suffix(".json").write_text(json.dumps(document, indent=1) + "\n")
    facts = "\n".join(f"- {name}: {value}" for name, value in (environment | settings).items())
    head = (
        "# Simulated: elastic, static and whole models\n\nWritten by `benchmarks/simulate.py`; see docs/elasticity.md."
    )
    base.with_suffix(".md").write_text(f"{head} Saved: {saved:.1%}; goal {GOAL:.1%}.\n\n{table}\n\n{facts}\n")
    every = max(1, round(300 / workload.step_s))
    rates = [
        (index * workload.step_s, float(workload.requests[index : index + every].mean()) / workload.step_s)
        for index in range(0, workload.num_steps, every)
    ]
    draw(outcomes, rates, base.with_suffix(".svg"))


if __name__ == "__main__":
    main()
