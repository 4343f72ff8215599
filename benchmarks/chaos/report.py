"""The outcomes as a table, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from .outcome import Outcome

PREAMBLE = """# What faults cost

Written by `benchmarks/chaos.py`. Streams run steadily against `herd serve` while processes are killed, stopped and
starved. Every stream is compared with the same request's stream of a fault-free run in the same application. A gap is
the time between two messages of a stream; "p99" is that of the fault-free part. Throughput is in tokens per second:
before the first fault, from each fault until everything was back that was there before, and after. "Back" is the time
from the fault until as many replicas run, are registered and connected as before: median and longest; for a storm, from
its last fault.
"""
_COLUMNS = (
    "scenario", "faults", "streams", "failed", "lost", "doubled", "changed", "longest gap s", "p99 gap s",
    "first token s", "before", "during", "after", "back s", "",
)  # fmt: skip

_COUNTS = ("streams", "failed", "lost", "duplicated", "changed")


def record_of(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as it is stored."""
    return asdict(outcome) | {"holds": outcome.holds}


def as_table(records: Sequence[dict[str, Any]]) -> str:
    """Return stored outcomes as a Markdown table."""
    lines = [f"| {' | '.join(_COLUMNS)} |", f"|---|{'---:|' * (len(_COLUMNS) - 2)}---|"]
    lines += [f"| {' | '.join(_cells(record))} |" for record in records]
    return "\n".join(lines)


def details(record: dict[str, Any]) -> list[str]:
    """Return what a row of the table does not say: how streams failed, what did not come back, what is left."""
    lines = [f"{count} x {error}" for error, count in record["differences"]["errors"].items()]
    lines += record["differences"]["examples"]
    if (own := record["through_target"]) is not None:
        lines.append(f"through the front door itself: {own['failed']} of {own['streams']} streams failed")
        lines += [f"there {count} x {error}" for error, count in own["errors"].items()]
    problems = Counter(fault["problem"] for fault in record["faults"] if fault["problem"])
    lines += [f"not back ({count} x): {problem}" for problem, count in problems.items()]
    grown = {name: counts for name, counts in record["descriptors"].items() if counts[1] > counts[0]}
    if grown:
        lines.append("descriptors: " + ", ".join(f"{name} {old} to {new}" for name, (old, new) in grown.items()))
    return lines + [f"left: {each}" for each in record["leaks"]]


def write_results(folder: Path, name: str, environment: dict[str, str], outcomes: Sequence[Outcome]) -> None:
    """Write outcomes as JSON and Markdown; those of other scenarios that the file has stay.

    Args:
        folder: for the files.
        name: of the files, without ending.
        environment: where the outcomes come from.
        outcomes: the new ones.
    """
    path = folder / f"{name}.json"
    stored: dict[str, Any] = json.loads(path.read_text())["scenarios"] if path.exists() else {}
    for outcome in outcomes:
        stored[outcome.scenario] = {"environment": environment, **record_of(outcome)}
    folder.mkdir(exist_ok=True)
    path.write_text(json.dumps({"scenarios": stored}, indent=1) + "\n")
    (folder / f"{name}.md").write_text(_page(name, folder, stored))


def _page(name: str, folder: Path, stored: dict[str, Any]) -> str:
    parts = [PREAMBLE, as_table(list(stored.values()))]
    for scenario, record in stored.items():
        facts = record["environment"] | record["settings"]
        lines = [f"\n## {scenario}\n", *(f"- {line}" for line in details(record))]
        lines.append(f"- {'; '.join(f'{key}: {value}' for key, value in facts.items())}")
        picture = f"{name}-{scenario}.svg"
        if (folder / picture).exists():
            lines.append(f"\n![tokens per second over time]({picture})")
        parts.append("\n".join(lines))
    return "\n".join(parts) + "\n"


def _cells(record: dict[str, Any]) -> list[str]:
    differences, own = record["differences"], record["through_target"]
    counts = [differences[key] + (own[key] if own else 0) for key in _COUNTS]
    rates = [record["tokens_per_s"].get(key) for key in ("before", "during", "after")]
    return [
        record["scenario"],
        str(len(record["faults"])),
        *map(str, counts),
        f"{record['longest_gap_s']:.2f}",
        f"{record['gap_p99_s']:.2f}",
        f"{record['longest_first_token_s']:.2f}",
        *("" if rate is None else f"{rate:.0f}" for rate in rates),
        _back(record["faults"]),
        "" if record["holds"] else "**broken**",
    ]


def _back(faults: list[dict[str, Any]]) -> str:
    if not faults:
        return ""
    awaited = [fault for fault in faults if not fault["is_overtaken"]]
    if any(fault["recovered_s"] is None for fault in awaited):
        return "never"
    seconds = [fault["recovered_s"] - fault["injected_s"] for fault in awaited]
    return f"{median(seconds):.1f}, {max(seconds):.1f}" if len(seconds) > 1 else f"{seconds[0]:.1f}"
