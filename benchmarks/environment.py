"""Where a measured number came from: hardware, commit, versions."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_tile")


def describe_environment(*packages: str) -> dict[str, str]:
    """Return what a reader needs to place a result, besides its own settings.

    Args:
        packages: distributions whose versions matter.
    """
    dirty = "" if _git("status", "--porcelain", "--untracked-files=no") == "" else ", with local changes"
    return {
        "hardware": f"{os.cpu_count()} cores of {_cpu()}, shared with other work",
        "load average before": " ".join(f"{load:.1f}" for load in os.getloadavg()),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "versions": ", ".join(f"{package} {version(package)}" for package in packages),
        "commit": _git("rev-parse", "--short=12", "HEAD") + dirty,
        "date": subprocess.run(["date", "-u", "+%Y-%m-%d"], capture_output=True, text=True, check=True).stdout.strip(),
    }


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _cpu() -> str:
    """Return the processor's name and those of its instruction sets that matrix products live on."""
    try:
        info = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(fields.get("flags", "").split())
    sets = [name for name in _INSTRUCTION_SETS if name in flags]
    return f"{fields.get('model name', platform.machine())} ({', '.join(sets)})"
