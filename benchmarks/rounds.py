"""What was measured in several rounds, as a table and as JSON."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.environment import RESULTS


def write_rounds(
    title: str,
    explanation: str,
    rounds: list[dict[str, float]],
    options: argparse.Namespace,
    environment: dict[str, str],
) -> str:
    """Write a result under benchmarks/results, where it has a name; return the table.

    Args:
        title: of the table.
        explanation: what the figures are, and the goal.
        rounds: figures by name, the same in every round.
        options: of the command line; `name` is the files', empty for none.
        environment: see describe_environment.
    """
    lines = [f"# {title}", "", explanation, "", "| | median | least | most |", "|---|---:|---:|---:|"]
    for name in rounds[0]:
        values = [each[name] for each in rounds]
        lines.append(f"| {name} | {statistics.median(values):.2f} | {min(values):.2f} | {max(values):.2f} |")
    settings = {name: str(value) for name, value in vars(options).items()}
    lines += ["", *(f"- {name}: {value}" for name, value in environment.items()), f"- settings: {json.dumps(settings)}"]
    text = "\n".join(lines) + "\n"
    if options.name:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{options.name}.md").write_text(text)
        record = {"environment": environment, "options": settings, "rounds": rounds}
        (RESULTS / f"{options.name}.json").write_text(json.dumps(record, indent=1) + "\n")
    return text
