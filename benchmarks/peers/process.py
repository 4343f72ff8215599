"""A worker's process: started, asked, paused and ended, each within a time."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .worker import descendants

END_S = 20.0
IDLE_SHARE = 0.02
_IDLE_WATCH_S = 2.0
_TAIL_BYTES = 1500


class WorkerFailed(Exception):
    """A worker ended, or did not answer in time."""


class WorkerProcess:
    """One engine's script, in a session of its own so that its whole family can be signalled.

    Args:
        name: for messages.
        command: how to start it.
        environment: variables beside this process's own.
        log: file for its stderr; emptied.
        start_s: most seconds until it is ready.
    """

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], log: Path, start_s: float
    ) -> None:
        self.name = name
        self._log = log
        self._is_paused = False
        self._received = bytearray()
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        try:
            self.ready: dict[str, Any] = self._read_line(start_s)
        except BaseException:
            self.end()
            raise

    def ask(self, prompts: list[list[int]], max_tokens: int, timeout_s: float) -> dict[str, Any]:
        """Return the worker's answer.

        Raises:
            WorkerFailed: it ended or took too long; it has been ended then.
        """
        self._resume()
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended: reading says so
            self._process.stdin.write(json.dumps({"prompts": prompts, "max_tokens": max_tokens}).encode() + b"\n")
            self._process.stdin.flush()
        try:
            return self._read_line(timeout_s)
        except BaseException:
            self.end(grace_s=0)  # whoever does not answer does not look whether it is to end
            raise

    def idle_share(self) -> float:
        """Return how many processors it keeps busy while it has nothing to do, measured over two seconds."""
        before_s = self._cpu_seconds()
        time.sleep(_IDLE_WATCH_S)
        return (self._cpu_seconds() - before_s) / _IDLE_WATCH_S

    def pause(self) -> None:
        """Stop all its processes until the next question, so that an engine that polls costs the others nothing."""
        self._signal(signal.SIGSTOP)
        self._is_paused = True

    def end(self, grace_s: float = END_S) -> None:
        """End it and everything it started, by force after `grace_s`. Idempotent."""
        self._resume()
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()
        family = [self._process.pid, *descendants(self._process.pid)]
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        self._signal(signal.SIGKILL)
        for pid in family:  # those in process groups of their own
            with suppress(ProcessLookupError):
                if os.getsid(pid) == self._process.pid:
                    os.kill(pid, signal.SIGKILL)
        self._process.wait(END_S)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _resume(self) -> None:
        if self._is_paused:
            self._signal(signal.SIGCONT)
            self._is_paused = False

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _read_line(self, timeout_s: float) -> dict[str, Any]:
        stdout = self._process.stdout
        assert stdout is not None
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._received:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise WorkerFailed(f"{self.name}: expected an answer within {timeout_s:.0f} s{self._tail()}")
                chunk = os.read(stdout.fileno(), 1 << 20)
                if not chunk:
                    raise WorkerFailed(f"{self.name}: ended{self._tail()}")
                self._received += chunk
        line, _, rest = bytes(self._received).partition(b"\n")
        self._received = bytearray(rest)
        return json.loads(line)

    def _tail(self) -> str:
        return f"; the end of {self._log}:\n{self._log.read_bytes()[-_TAIL_BYTES:].decode(errors='replace')}"

    def _cpu_seconds(self) -> float:
        ticks = 0
        for pid in [self._process.pid, *descendants(self._process.pid)]:
            try:
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")
