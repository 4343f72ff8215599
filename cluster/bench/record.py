"""A run's result for programs: a JSON object whose shape is versioned. docs/bench.md describes it."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.bench.caveats import find_caveats
from cluster.bench.measurement import Measurement, Status
from cluster.bench.session import Result
from cluster.bench.settings import Settings
from cluster.bench.summary import Summary
from cluster.version import herd_version

SCHEMA = "herd-bench/1"
"""Grows by fields; a field that goes or changes its meaning makes it herd-bench/2."""


def write_record(result: Result, summary: Summary, path: Path, *, with_messages: bool = False) -> None:
    """Write the file.

    Args:
        result: of the run.
        summary: of the same run.
        path: is overwritten.
        with_messages: add time and tokens of every message to each request's row.
    """
    record = build_record(result, summary, with_messages=with_messages)
    path.write_text(json.dumps(record, allow_nan=False, indent=1) + "\n", encoding="utf-8")


def build_record(result: Result, summary: Summary, *, with_messages: bool = False) -> dict[str, Any]:
    """Return what `write_record` writes."""
    return {
        "schema": SCHEMA,
        "started_at": result.started_at.isoformat(timespec="milliseconds"),
        "duration_s": round(result.duration_s, 6),
        "is_interrupted": result.is_interrupted,
        "gave_up": result.gave_up,
        "settings": settings_record(result.settings),
        "target": asdict(result.facts),
        "environment": environment_record(),
        "num_clipped": result.num_clipped,
        "summary": _rounded(asdict(summary)),
        "caveats": [asdict(caveat) for caveat in find_caveats(result, summary)],
        "requests": [request_record(each, with_messages=with_messages) for each in result.measurements],
    }


def settings_record(settings: Settings) -> dict[str, Any]:
    """Return all settings, without the key of the API."""
    record = asdict(settings)
    del record["endpoint"]["api_key"]
    record["arrival"] = {"kind": type(settings.arrival).__name__, **record["arrival"]}
    if "path" in record["arrival"]:
        record["arrival"]["path"] = str(record["arrival"]["path"])
    return record


def environment_record() -> dict[str, Any]:
    """Return what the load generator ran on."""
    return {
        "herd": herd_version(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
    }


def request_record(measurement: Measurement, *, with_messages: bool = False) -> dict[str, Any]:
    """Return a request's row; times in `_s` count from the start of the run."""
    is_sent = measurement.status is not Status.NOT_SENT
    row: dict[str, Any] = {
        "index": measurement.index,
        "status": measurement.status.value,
        "scheduled_s": measurement.scheduled_s,
        "sent_s": measurement.sent_s if is_sent else None,
        "end_s": measurement.end_s if is_sent else None,
        "ttft_ms": _ms(measurement.ttft_s),
        "tpot_ms": _ms(measurement.tpot_s),
        "e2e_ms": _ms(measurement.e2e_s) if is_sent else None,
        "max_gap_ms": _ms(max(measurement.gaps_s(), default=None)),
        "prompt_tokens": measurement.num_prompt_tokens or None,
        "cached_tokens": measurement.cached_tokens,
        "max_tokens": measurement.max_tokens,
        "output_tokens": measurement.num_tokens,
        "messages": len(measurement.message_s),
        "finish_reason": measurement.finish_reason,
        "error": None,
    }
    if error := measurement.error:
        row["error"] = {"kind": error.kind, "message": error.message}
    if with_messages:
        row["message_s"] = measurement.message_s.tolist()
        row["message_tokens"] = measurement.message_tokens.tolist()
    rounded: dict[str, Any] = _rounded(row)
    return rounded


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000


def _rounded(value: Any) -> Any:
    """Cut floats to what was measured: microseconds of seconds, nanoseconds of milliseconds."""
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, Mapping):
        return {name: _rounded(each) for name, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list | tuple) else value


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
