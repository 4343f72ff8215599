"""`herd serve` for one run: on free ports, in a session of its own, and nothing left of it afterwards."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cluster.launch.processes import descendants

_MARKER = "HERD_CHAOS_RUN"
_READY = "herd is ready"
_POLL_S = 0.1
_FIRST_PORT = 20_000
"""Below it are those that Ray takes for its workers."""


class Application:
    """Context manager: a Herd that serves, ended by SIGINT, by SIGKILL if that does not help.

    Args:
        settings: for `--set`, as "experts.replicas_per_group=2".
        folder: where it keeps its files, at most 24 characters; None: where the system keeps temporary files.
        start_s: most seconds until it serves.
        stop_s: most seconds it has to end by itself.
    """

    def __init__(
        self, settings: Sequence[str] = (), *, folder: Path | None = None, start_s: float = 180.0, stop_s: float = 60.0
    ) -> None:
        self.http_port, self.grpc_port = _find_port(), _find_port()
        self._command = [str(Path(sys.executable).with_name("herd")), "serve"]
        for each in settings:
            self._command += ["--set", each]
        self._command += ["--http-port", str(self.http_port), "--grpc-port", str(self.grpc_port)]
        self._environment = {**os.environ, _MARKER: uuid.uuid4().hex}
        if folder is not None:
            self._environment["TMPDIR"] = str(folder)
        self._start_s, self._stop_s = start_s, stop_s
        self._process: subprocess.Popen[bytes] | None = None
        self._last_output = ""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed in __exit__

    @property
    def pid(self) -> int:
        """Return the process id of `herd serve`, whose descendants are the whole application."""
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> str:
        """Return everything it printed."""
        if self._log.closed:
            return self._last_output
        size = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, 0).decode(errors="replace")

    @property
    def is_running(self) -> bool:
        """Tell whether `herd serve` has not ended."""
        return self._process is not None and self._process.poll() is None

    def leftovers(self) -> list[str]:
        """Return the command lines of processes it started that live."""
        marker = f"{_MARKER}={self._environment[_MARKER]}".encode()
        return [_command_line(pid) for pid in _all_pids() if marker in _read(pid, "environ")]

    def __enter__(self) -> Application:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=self._environment,
            start_new_session=True,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_running:
            assert self._process is not None
            os.killpg(self.pid, signal.SIGINT)
            try:
                self._process.wait(self._stop_s)
            except subprocess.TimeoutExpired:
                for pid in [*descendants(self.pid), self.pid]:
                    _kill(pid)
                self._process.wait(self._stop_s)
        for pid in _all_pids():
            # Whatever outlived it is somebody else's finding (`leftovers` before this), and nobody's to keep.
            if f"{_MARKER}={self._environment[_MARKER]}".encode() in _read(pid, "environ"):
                _kill(pid)
        self._last_output = self.output
        self._log.close()

    def end(self) -> int:
        """Interrupt it as Ctrl-C does and return its exit code once it has ended.

        Raises:
            subprocess.TimeoutExpired: it did not end in time.
        """
        assert self._process is not None
        if self.is_running:
            os.killpg(self.pid, signal.SIGINT)
        return self._process.wait(self._stop_s)

    def _wait_until_ready(self) -> None:
        give_up_at = time.monotonic() + self._start_s
        while _READY not in self.output:
            if not self.is_running:
                raise RuntimeError(f"expected herd serve to start, found it ended:\n{self.output}")
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"expected herd serve to be ready within {self._start_s:g} s:\n{self.output}")
            time.sleep(_POLL_S)


def _find_port() -> int:
    """Return a free port that no outgoing connection can take before it is listened on, many seconds from now."""
    lowest, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    while True:
        port = random.randrange(_FIRST_PORT, int(lowest))
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port


def _all_pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _command_line(pid: int) -> str:
    return f"{pid} {_read(pid, 'cmdline').decode(errors='replace').replace(chr(0), ' ').strip()}"


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
