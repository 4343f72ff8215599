"""The command line: `python -m examples.train_demo {train,export,evaluate}`."""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
from pathlib import Path

import torch

from examples.train_demo.corpus import Batches, ensure_vocabulary, read_texts
from examples.train_demo.export import export
from examples.train_demo.model import DemoModel, DemoShape
from examples.train_demo.training import Plan, Trainer, describe

EPILOG = """
The whole recipe, on two CPU cores (docs/demo-model.md has the figures):

  python -m examples.train_demo train       reads this Python's own documentation, trains, can be cut and resumed
  python -m examples.train_demo export      writes models/demo from the newest checkpoint
  python -m examples.train_demo evaluate    held-out loss, expert load and answers of what was exported
"""


def main() -> None:
    """Run one command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.train_demo",
        description="Train the small Llama 4 mixture of experts that ships with Herd.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=("train", "export", "evaluate"))
    parser.add_argument(
        "--run", type=Path, default=Path("build/demo"), help="folder of checkpoint and curve (%(default)s)"
    )
    parser.add_argument("--model", type=Path, default=Path("models/demo"), help="folder of the model (%(default)s)")
    parser.add_argument("--steps", type=int, default=Plan().steps, help="optimiser steps in all (%(default)s)")
    parser.add_argument("--seed", type=int, default=Plan().seed, help="seed of weights and batches (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads, no more than idle cores (%(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    keep_freed_memory()
    if args.command == "train":
        train(args.run, args.model, dataclasses.replace(Plan(), steps=args.steps, seed=args.seed))
    elif args.command == "export":
        export_newest(args.run, args.model)
    else:
        from examples.train_demo.evaluation import report

        report(args.model, read_texts())


def keep_freed_memory() -> None:
    """Tell glibc to keep freed memory: giving it back after every tensor made training six times slower."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return  # not glibc; only slower
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 2**27)


def train(run: Path, model: Path, plan: Plan) -> None:
    """Train the tokenizer where there is none, then the weights, from the newest checkpoint where there is one."""
    run.mkdir(parents=True, exist_ok=True)
    model.mkdir(parents=True, exist_ok=True)
    texts = read_texts()
    encoding = ensure_vocabulary(texts, model / "tokenizer.model")
    trainer = Trainer(DemoShape(), plan, run)
    print(f"{len(texts.training)} documents, {len(texts.held_out)} held out, {len(texts.turns)} chat turns")
    size = sum(weight.numel() for weight in trainer.model.parameters())
    print(f"{size:,} parameters; {describe(plan)}; from step {trainer.step}", flush=True)
    trainer.run(Batches(texts, encoding, plan.seed))
    export(trainer.model, model)


def export_newest(run: Path, folder: Path) -> None:
    """Export the newest checkpoint, also while a training writes to it."""
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    model = DemoModel(DemoShape())
    model.load_state_dict(state["weights"])
    export(model, folder)
    print(f"{folder}: step {state['progress']['step']}, {sum(f.stat().st_size for f in folder.iterdir()):,} bytes")


if __name__ == "__main__":
    main()
