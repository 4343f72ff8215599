"""One engine in a process of its own, asked for generations by lines of JSON. Standard library only.

Every engine's script makes an `Engine` and calls `run`; it may be run by any Python. On stdout, one line each:

    <- {"ready": true, "load_s": 12.3, "versions": {...}, "settings": {...}}
    -> {"prompts": [[1, 2], [3, 4]], "max_tokens": 64}
    <- {"seconds": 9.8, "ttft_s": 1.2, "tokens": [[...], [...]], "arrivals_s": [[...], [...]], "peak_rss_bytes": {...}}

All prompts are given to the engine at once. `arrivals_s` says when each token left the engine, in seconds since then;
`ttft_s` is the first of them and `seconds` the last. Whatever else the engine prints goes to stderr. The process ends
with its stdin.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

_PR_SET_PDEATHSIG = 1


class Engine(Protocol):
    """What an engine's script provides."""

    settings: dict[str, Any]
    """Everything that was chosen, for the results."""

    def generate(self, prompts: list[list[int]], max_tokens: int, emit: Callable[[int, int], None]) -> None:
        """Generate greedily to max_tokens, whatever the end-of-text token, and call emit(prompt, token) for each."""

    def process_names(self) -> dict[int, str]:
        """Return what this engine's processes are called in the results, by their id."""


class Arrivals:
    """Which token arrived when.

    Args:
        num_prompts: sequences.
    """

    def __init__(self, num_prompts: int) -> None:
        self.tokens: list[list[int]] = [[] for _ in range(num_prompts)]
        self.at_s: list[list[float]] = [[] for _ in range(num_prompts)]
        self._start_s = time.perf_counter()

    def __call__(self, prompt: int, token: int) -> None:
        """Note a token of a prompt."""
        self.at_s[prompt].append(round(time.perf_counter() - self._start_s, 6))
        self.tokens[prompt].append(token)


def run(load: Callable[[], Engine], packages: Iterable[str]) -> None:
    """Load an engine and answer until stdin ends.

    Args:
        load: makes the engine.
        packages: distributions whose versions matter.
    """
    _end_with_parent()
    replies = _take_stdout()
    start_s = time.perf_counter()
    engine = load()
    _reply(
        replies,
        ready=True,
        load_s=round(time.perf_counter() - start_s, 1),
        versions={name: version(name) for name in packages},
        settings=engine.settings,
        peak_rss_bytes=memory_bytes("VmHWM", engine.process_names()),
    )
    for line in sys.stdin:
        _reply(replies, **_answer(engine, json.loads(line)))


def _answer(engine: Engine, request: dict[str, Any]) -> dict[str, Any]:
    prompts, max_tokens = request["prompts"], request["max_tokens"]
    arrivals = Arrivals(len(prompts))
    engine.generate(prompts, max_tokens, arrivals)
    lengths = [len(tokens) for tokens in arrivals.tokens]
    if set(lengths) != {max_tokens}:
        raise RuntimeError(f"expected {max_tokens} tokens of every sequence, found {lengths}")
    names = engine.process_names()
    return {
        "seconds": max(times[-1] for times in arrivals.at_s),
        "ttft_s": min(times[0] for times in arrivals.at_s),
        "tokens": arrivals.tokens,
        "arrivals_s": arrivals.at_s,
        "peak_rss_bytes": memory_bytes("VmHWM", names),
        "rss_bytes": memory_bytes("VmRSS", names),
    }


def memory_bytes(field: str, names: dict[int, str]) -> dict[str, int]:
    """Return a field of /proc/<id>/status for this process and its descendants, by name.

    Args:
        field: VmHWM, the most that was ever resident, or VmRSS, what is resident now.
        names: by process id; others are called what the system calls them. Equal names are numbered.
    """
    found: dict[str, int] = {}
    for pid in [os.getpid(), *descendants(os.getpid())]:
        status = _status(pid)
        if field not in status:
            continue
        name = names.get(pid, status["Name"])
        while name in found:
            base, _, number = name.partition(" #")
            name = f"{base} #{int(number or 1) + 1}"
        found[name] = int(status[field].split()[0]) * 1024
    return found


def descendants(pid: int) -> list[int]:
    """Return the ids of a process's children, their children and so on."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and (status := _status(int(folder.name))):
            parents.setdefault(int(status["PPid"]), []).append(int(folder.name))
    found, queue = [], [pid]
    while queue:
        children = parents.get(queue.pop(), [])
        found += children
        queue += children
    return sorted(found)


def _status(pid: int) -> dict[str, str]:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has ended
        return {}
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _end_with_parent() -> None:
    """Have this process's group killed when its parent dies, even while it is stopped.

    A stopped process reads no end of its stdin. So the kernel is asked to continue it when the parent dies, and each
    time it is continued it looks who the parent is.
    """
    parent = os.getppid()

    def look(*_: object) -> None:
        if os.getppid() != parent:
            os.kill(0 if os.getpgrp() == os.getpid() else os.getpid(), signal.SIGKILL)

    signal.signal(signal.SIGCONT, look)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGCONT)


def _take_stdout() -> int:
    """Return a descriptor of stdout; from here on, what anybody prints goes to stderr."""
    replies = os.dup(1)
    os.dup2(2, 1)
    return replies


def _reply(replies: int, **fields: Any) -> None:
    line = json.dumps(fields).encode() + b"\n"
    while line:
        line = line[os.write(replies, line) :]
