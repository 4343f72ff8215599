"""Requests made from our OpenAPI page, right and wrong ones, by schemathesis, which compares answers with the page."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

_COMMAND = Path(sys.executable).with_name("schemathesis")
_CHECKS = Path(__file__).with_name("page_checks.py")
_REPLACED = "positive_data_acceptance"


@dataclass(frozen=True, kw_only=True, slots=True)
class PageReport:
    """What schemathesis found."""

    num_requests: int
    """Requests it made."""
    num_operations: int
    """Operations of the page it tried."""
    failures: tuple[str, ...]
    """Answers that are not as the page says, or a server's failure: each kind once, with where it was found."""
    output: str
    """What it printed: every failure with a command that shows it again."""


def send_by_page(
    url: str,
    *,
    most_per_operation: int,
    seed: int,
    has_boundaries: bool,
    key: str = "",
    wait_s: float = 10.0,
    timeout_s: float = 3600.0,
) -> PageReport:
    """Make requests of every operation; return how they ended.

    Args:
        url: of the front door, as http://localhost:8000.
        most_per_operation: random requests for each operation of the page.
        seed: of those.
        has_boundaries: also try the least, the largest, the missing and the wrong of every field: some hundred more.
        key: API key to send; empty: none.
        wait_s: seconds an answer may take.
        timeout_s: seconds all of it may take.

    Raises:
        subprocess.TimeoutExpired: it took longer.
        RuntimeError: it could not begin.
    """
    phases = "examples,coverage,fuzzing" if has_boundaries else "examples,fuzzing"
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        ran = subprocess.run(
            [
                *(_COMMAND, "run", f"{url}/openapi.json", "--phases", phases, "--seed", str(seed)),
                *("--max-examples", str(most_per_operation), "--request-timeout", str(wait_s), "--no-shrink"),
                *("--exclude-checks", _REPLACED, "--suppress-health-check", "all", "--continue-on-failure"),
                *("--report-json-path", str(report), "--no-color"),
                *(("--header", f"Authorization: Bearer {key}") if key else ()),
            ],
            capture_output=True,
            text=True,
            timeout=timeout_s,
            cwd=folder,
            env={**os.environ, "SCHEMATHESIS_HOOKS": str(_CHECKS)},
        )
        if not report.exists():
            raise RuntimeError(f"expected schemathesis to run, found it ended:\n{ran.stdout}{ran.stderr}")
        found = json.loads(report.read_text())
    failures = [f"{each['title']}: {', '.join(each['operations'])}" for each in found["failures"]]
    failures += [f"error: {each}" for each in found["errors"]]
    if ran.returncode and not failures:
        failures.append(f"exit code {ran.returncode}")
    return PageReport(
        num_requests=found["test_cases"]["generated"],
        num_operations=found["operations"]["tested"],
        failures=tuple(failures),
        output=ran.stdout + ran.stderr,
    )
