"""`herd doctor`: one line per finding."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from cluster.doctor import Finding, Verdict

_STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}


def print_findings(findings: Sequence[Finding]) -> int:
    """Print them; return the exit code: 1 when one of them keeps Herd from starting."""
    console = Console(highlight=False, soft_wrap=True)
    width = max(len(finding.subject) for finding in findings)
    for finding in findings:
        verdict = (f"{finding.verdict.value:<5}", _STYLES[finding.verdict])
        console.print(Text.assemble(verdict, f"{finding.subject:<{width}}  {finding.text}"))
    return int(any(finding.verdict is Verdict.FAIL for finding in findings))
