"""Herd beside other engines: one model, one machine, one run, the same prompts, asked in the same way.

What runs. A random Llama 4 of 790 million parameters (`random_llama4.py`), on

    herd-split-*     Herd's router, its experts in two processes behind gRPC on Unix sockets
    herd-local-*     Herd's router with its experts in the same process
    vllm-*           vLLM's CPU build
    llama-*          llama.cpp, built from source for this processor
    transformers-*   transformers' generate

What is measured. All prompts of a workload are given to an engine at once, as token ids, in its own process: no
HTTP, no tokenizer, no detokenizing, for anybody. Every token is generated greedily and to the full length, and its
arrival is noted.

    decode-N         N prompts of 128 tokens, 64 new tokens each: generated tokens per second from the moment the last
                     sequence has its first token to the end; also over the whole answer, prompts included, which
                     an engine that generates for some while it still reads others' prompts is better judged by
    prompt-8x512     8 prompts of 512 tokens, one new token each: prompt tokens per second to the last first token
    prompt-1x65536   with --long: one prompt of so many tokens, in steps of 8192; also what a second costs, as a fit of
                     a n + b n^2 to all lengths

Why it is fair. Each engine has the settings that were found fastest for it on the machine this was written on (in
`peers/engines.py`, repeated in the results), the same room for its cache, no prefix cache (prompts differ in every
round anyway), and every processor. In a round each workload is put to one engine after the other, so that a ratio is
of figures taken seconds apart; every other round goes backwards; the first round warms up and is thrown away. Workers
stay loaded between turns if memory allows (else each engine does all its workloads in turn); one that is busy when
idle is stopped meanwhile. Ratios are taken round by round, between each engine's best of float32 and bfloat16 (and of
the ways to bind vLLM's threads). And the engines do compute the same model: each is first asked for 64 greedy tokens,
and how many are those of transformers in float32 is part of the results.

    python benchmarks/peers.py setup                       make the peers' environments (20 minutes, 3 GB)
    python benchmarks/peers.py run                         everything, 3 rounds
    python benchmarks/peers.py run --long --engines 'herd-*-bf16' 'vllm-*-bf16' --step-tokens 8192
    python benchmarks/peers.py run --quick --rounds 1      a few minutes, to see that it works
    python benchmarks/peers.py run --engines herd-split-fp32 vllm-all-fp32 --workloads decode-32
    python benchmarks/peers.py run --engines 'herd-*' llama-q8_0 --router-threads 1
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from environment import RESULTS, ROOT, describe_environment
from peers import engines, environments
from peers.engines import Variant
from peers.pool import WorkerPool, available_bytes
from peers.process import WorkerFailed, WorkerProcess
from peers.report import Run, as_json, as_markdown
from peers.workloads import (
    AGREEMENT,
    LONG_WORKLOADS,
    QUICK_WORKLOADS,
    WARM_UP,
    WORKLOADS,
    Workload,
    count_agreeing,
    measure,
)
from random_llama4 import RandomLlama4, write_random_llama4

REFERENCE = "transformers-fp32"
HOME = Path.home() / ".cache" / "herd-peers"
START_S = 900.0
ANSWER_S = 900.0
_LOAD_BYTES_PER_WEIGHT_BYTE = 2.2
_MARKDOWN_RULE = re.compile(r"\n    (?=\S)")


class Bench:
    """One run.

    Args:
        options: the command line's.
        variants: the engines that take part, by name.
        workloads: what they are asked.
    """

    def __init__(
        self, options: argparse.Namespace, variants: dict[str, Variant], workloads: Sequence[Workload]
    ) -> None:
        self._options = options
        self._checkpoint = _checkpoint(options)
        self._vocab_size = json.loads((self._checkpoint / "config.json").read_text())["vocab_size"]
        self._weight_bytes = sum(file.stat().st_size for file in self._checkpoint.glob("*.safetensors"))
        self.run = Run(variants=variants, workloads=workloads)
        self._memory_bytes = available_bytes()
        self.pool = WorkerPool(self._start, self._need_bytes, available_bytes, self._note_idle)

    def measure_rounds(self, after_round: Callable[[], None]) -> None:
        """Check agreement, warm up and measure; a variant that fails is left out from there on."""
        self._compare_tokens()
        for number in range(self._options.rounds + 1):
            for name, workload in self._turns(number):
                if name not in self.run.failures:
                    self._turn(number, name, workload)
            if number:
                after_round()

    def _turns(self, number: int) -> list[tuple[str, Workload]]:
        """Return who is asked what in a round: workload by workload if all engines fit in memory, else by engine."""
        names = [name for name in self.run.variants if name not in self.run.failures]
        if number % 2 == 0:
            names.reverse()
        if sum(self._need_bytes(name) for name in names) < self._memory_bytes:
            return [(name, workload) for workload in self.run.workloads for name in names]
        return [(name, workload) for name in names for workload in self.run.workloads]

    def _compare_tokens(self) -> None:
        """Ask every engine for the same greedy tokens, the reference first; then warm it up."""
        prompts = AGREEMENT.make_prompts(self._vocab_size, "agreement")
        kept = self._options.peers_home / f"{self._checkpoint.name}.greedy.json"
        is_current = kept.is_file() and kept.stat().st_mtime > (self._checkpoint / "config.json").stat().st_mtime
        expected = json.loads(kept.read_text()) if is_current else None
        for name in sorted(self.run.variants, key=lambda name: name != REFERENCE):
            answer = self._ask(name, prompts, AGREEMENT.max_tokens)
            if answer is None:
                continue
            if name == REFERENCE:
                expected = answer["tokens"]
                kept.write_text(json.dumps(expected))
            if expected is not None:
                agreeing = count_agreeing(expected, answer["tokens"])
                self.run.agreement[name] = f"{agreeing} of {AGREEMENT.prompts * AGREEMENT.max_tokens}"
                self._say(f"{name}: {self.run.agreement[name]} greedy tokens as {REFERENCE}")
            self._ask(name, WARM_UP.make_prompts(self._vocab_size, name), WARM_UP.max_tokens)
            self.pool.rest(name)

    def _turn(self, number: int, name: str, workload: Workload) -> None:
        prompts = workload.make_prompts(self._vocab_size, f"round {number}")
        answer = self._ask(name, prompts, workload.max_tokens)
        if answer is None:
            return
        found = measure(workload, answer)
        if number:
            self.run.add(name, workload.name, number, found)
        which = f"round {number}/{self._options.rounds}" if number else "warm-up"
        self._say(
            f"{which:>10}  {workload.name:<13} {name:<18} {found.rate:8.1f} tok/s  (whole {found.total_rate:7.1f}, "
            f"first token {found.first_token_s:.2f} s, {found.seconds:.1f} s)"
        )
        self.pool.rest(name)

    def _ask(self, name: str, prompts: list[list[int]], max_tokens: int) -> dict | None:
        try:
            answer = self.pool.get(name).ask(prompts, max_tokens, self._options.answer_seconds)
        except WorkerFailed as error:
            self.pool.drop(name)
            self.run.failures[name] = str(error).splitlines()[0]
            self._say(f"{name} is left out from here on: {error}")
            return None
        self.run.note_peak(name, answer["peak_rss_bytes"])
        return answer

    def _start(self, name: str) -> WorkerProcess:
        variant = self.run.variants[name]
        variables = variant.environment(self._options.peers_home)
        if variant.environment_name == "herd":
            variables["PYTHONPATH"] = str(self._options.herd_checkout)
        logs = self._options.peers_home / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        command = variant.command(self._options.peers_home, self._checkpoint, Path(sys.executable))
        self._say(f"{name}: loading")
        worker = WorkerProcess(name, command, variables, logs / f"{name}.log", START_S)
        self.run.ready[name] = worker.ready
        self.run.note_peak(name, worker.ready["peak_rss_bytes"])
        return worker

    def _need_bytes(self, name: str) -> int:
        known = self.run.peak_bytes.get(name)
        if known:
            return sum(known.values())
        variant = self.run.variants[name]
        wide = 2 if variant.is_exact else 1
        return int(self._weight_bytes * wide * _LOAD_BYTES_PER_WEIGHT_BYTE)

    def _note_idle(self, name: str, share: float) -> None:
        self.run.idle_share[name] = round(share, 3)

    def _say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def run_peers(options: argparse.Namespace) -> int:
    """Measure and write the results; return the exit code."""
    workloads = _chosen_workloads(options)
    variants = _chosen_variants(options)
    _prepare(options, variants)
    environment = describe_environment("torch", "grpcio") | _versions(variants)
    environment |= {"Herd measured": _checkout_commit(options.herd_checkout), "rounds": str(options.rounds)}
    environment["model"] = str(
        options.model or f"random, {RandomLlama4().num_parameters() / 1e6:.0f} million parameters"
    )
    bench = Bench(options, variants, workloads)

    def save() -> None:
        _save(options, bench.run, environment)

    try:
        bench.measure_rounds(save)
    finally:
        bench.pool.end_all()
    print(as_markdown(bench.run, "", environment))
    return 1 if bench.run.failures else 0


def _save(options: argparse.Namespace, run: Run, environment: dict[str, str]) -> None:
    RESULTS.mkdir(exist_ok=True)
    name = (
        options.name
        or f"peers-{_cpu_slug(environment['hardware'])}{'-long' if options.long else '-quick' if options.quick else ''}"
    )
    (RESULTS / f"{name}.md").write_text(as_markdown(run, _preamble(), environment))
    (RESULTS / f"{name}.json").write_text(json.dumps(as_json(run, environment), indent=1) + "\n")
    print(f"wrote {(RESULTS / name).relative_to(ROOT)}.md and .json", flush=True)


def _preamble() -> str:
    """Return this module's own words up to its commands, as a page's beginning."""
    text = (__doc__ or "").partition("\n    python benchmarks/peers.py")[0].strip()
    title, _, rest = text.partition("\n")
    return f"# {title}\n\nWritten by `benchmarks/peers.py`. Median (least to most) over the rounds.\n{rest}"


def _cpu_slug(hardware: str) -> str:
    """Return a file name's part out of "2 cores of NAME (...)"."""
    name = hardware.partition(" (")[0].replace(" cores of ", "x")
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _prepare(options: argparse.Namespace, variants: dict[str, Variant]) -> None:
    needed = {variant.environment_name for variant in variants.values()} - {"herd"}
    missing = environments.missing_environments(options.peers_home, sorted(needed))
    if missing:
        sys.exit(
            f"expected environments for {', '.join(missing)} in {options.peers_home}, found none: run "
            f"`python benchmarks/peers.py setup --peers-home {options.peers_home}`, or leave them out with --engines"
        )
    if options.model is None:
        write_random_llama4(_checkpoint(options), RandomLlama4())
    kinds = [variant.gguf for variant in variants.values() if variant.gguf]
    environments.export_ggufs(options.peers_home, _checkpoint(options), kinds)


def _checkpoint(options: argparse.Namespace) -> Path:
    return options.model or options.peers_home / "random-llama4"


def _chosen_workloads(options: argparse.Namespace) -> list[Workload]:
    known = LONG_WORKLOADS if options.long else QUICK_WORKLOADS if options.quick else WORKLOADS
    return [workload for workload in known if _matches(workload.name, options.workloads)]


def _chosen_variants(options: argparse.Namespace) -> dict[str, Variant]:
    quantizes = _herd_quantizes(options.herd_checkout)
    if not quantizes:
        print("this checkout of Herd does not quantise: no herd-*-int8", flush=True)
    known = engines.all_variants(
        router_threads=options.router_threads,
        expert_threads=options.expert_threads,
        step_tokens=options.step_tokens,
        herd_quantizes=quantizes,
        is_long=options.long,
    )
    chosen = {name: variant for name, variant in known.items() if _matches(name, options.engines)}
    if not chosen:
        sys.exit(f"expected --engines to match some of {', '.join(known)}, found {options.engines}")
    return chosen


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _herd_quantizes(checkout: Path) -> bool:
    """Tell whether expert processes know `--quantize`."""
    done = subprocess.run(
        [sys.executable, "-m", "experts", "--help"], cwd=checkout, capture_output=True, text=True, timeout=START_S
    )
    return "--quantize" in done.stdout


def _checkout_commit(checkout: Path) -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=checkout, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def _versions(variants: dict[str, Variant]) -> dict[str, str]:
    """Return what the peers' environments were asked for."""
    pinned = {
        "vllm": environments.VLLM,
        "transformers": environments.TRANSFORMERS,
        "llama": environments.LLAMA_CPP,
    }
    used = dict.fromkeys(variant.environment_name for variant in variants.values())
    return {"peers": ", ".join(pinned[name] for name in used if name in pinned) or "none"}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="setup | run")
    setup = commands.add_parser("setup", help="make the peers' environments")
    setup.add_argument(
        "names", nargs="*", default=list(environments.ENVIRONMENTS), help=f"({' '.join(environments.ENVIRONMENTS)})"
    )
    setup.set_defaults(command=_setup)
    run = commands.add_parser("run", help="measure", formatter_class=argparse.RawDescriptionHelpFormatter)
    run.set_defaults(command=run_peers)
    known = ", ".join(engines.all_variants())
    run.add_argument("--engines", nargs="+", default=_DEFAULT_ENGINES, metavar="NAME", help=f"patterns of {known}")
    names = ", ".join(workload.name for workload in WORKLOADS)
    run.add_argument("--workloads", nargs="+", default=["*"], metavar="NAME", help=f"patterns of {names}")
    run.add_argument("--rounds", type=int, default=3, help="after the one that warms up (3)")
    run.add_argument("--quick", action="store_true", help="16 new tokens instead of 64; results beside the others")
    run.add_argument("--long", action="store_true", help="one prompt of 8, 32, 64 thousand tokens (vLLM and Herd)")
    run.add_argument("--router-threads", type=int, default=engines.ROUTER_THREADS, help=f"({engines.ROUTER_THREADS})")
    run.add_argument("--expert-threads", type=int, default=engines.EXPERT_THREADS, help=f"({engines.EXPERT_THREADS})")
    run.add_argument("--step-tokens", type=int, default=engines.STEP_TOKENS, help=f"of Herd ({engines.STEP_TOKENS})")
    run.add_argument("--model", type=Path, help="another checkpoint without a tokenizer (the random one)")
    run.add_argument("--herd-checkout", type=Path, default=ROOT, help="another checkout of Herd to measure (this one)")
    run.add_argument("--answer-seconds", type=float, default=ANSWER_S, help=f"most for one answer ({ANSWER_S:.0f})")
    run.add_argument("--name", help="of the results' files (peers-<processor>)")
    for command in (setup, run):
        command.add_argument("--peers-home", type=Path, default=HOME, help=f"environments, model and logs ({HOME})")
    return parser


# llama-f32 is there to show that the export is right; it is slower than its other types everywhere.
_DEFAULT_ENGINES = ["herd-*", "vllm-all-*", "vllm-iomp-*", "llama-bf16", "llama-q8_0", "transformers-*"]


def _setup(options: argparse.Namespace) -> int:
    options.peers_home.mkdir(parents=True, exist_ok=True)
    environments.make_environments(options.peers_home, options.names)
    return 0


def _interrupt(*_: object) -> NoReturn:
    """Leave; a second signal must not cut short the ending of workers."""
    for other in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> int:
    """Run a command; Ctrl-C and SIGTERM end every worker."""
    options = _parser().parse_args()
    options.peers_home = options.peers_home.expanduser().resolve()
    # SIGINT as well: a shell has background jobs ignore it.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        return options.command(options)
    except KeyboardInterrupt:
        print("interrupted: every worker has been ended", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
