"""`herd serve` for one run: on free ports, in a session of its own, and nothing left of it afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmarks.free_port import find_free_port
from benchmarks.marked_processes import MarkedProcesses
from cluster.launch.processes import descendants

HERD = str(Path(sys.executable).with_name("herd"))
"""The command."""
_READY = "herd is ready"
_POLL_S = 0.1


class Application:
    """Context manager: a Herd that serves, ended by SIGINT, by SIGKILL if that does not help.

    Args:
        settings: for `--set`, as "experts.replicas_per_group=2".
        model: which; None: what the settings say.
        folder: where it keeps its files, at most 24 characters; None: where the system keeps temporary files.
        start_s: most seconds until it serves.
        stop_s: most seconds it has to end by itself.
    """

    def __init__(
        self,
        settings: Sequence[str] = (),
        *,
        model: str | None = None,
        folder: Path | None = None,
        start_s: float = 180.0,
        stop_s: float = 60.0,
    ) -> None:
        self.http_port, self.grpc_port = find_free_port(), find_free_port()
        self.base_url = f"http://localhost:{self.http_port}"
        self.grpc_address = f"localhost:{self.grpc_port}"
        self._command = [HERD, "serve", *([] if model is None else [model])]
        for each in settings:
            self._command += ["--set", each]
        self._command += ["--http-port", str(self.http_port), "--grpc-port", str(self.grpc_port)]
        self._processes = MarkedProcesses()
        self._environment = {**os.environ, **self._processes.environment}
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
        return self._processes.command_lines()

    def __enter__(self) -> Application:
        if threading.current_thread() is threading.main_thread():
            # Like Ctrl-C from now on: what ends this process is to end the application, which has a session of its own.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
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
        try:
            self.end()
        except subprocess.TimeoutExpired:
            for pid in [*descendants(self.pid), self.pid]:
                _kill(pid)
            self.wait()
        # Whatever outlived it is somebody else's finding (`leftovers` before this), and nobody's to keep.
        self._processes.kill()
        self._last_output = self.output
        self._log.close()

    def interrupt(self) -> None:
        """Send what Ctrl-C in a terminal sends: SIGINT to every process of the session's group."""
        os.killpg(self.pid, signal.SIGINT)

    def wait(self) -> int:
        """Return its exit code once it has ended.

        Raises:
            subprocess.TimeoutExpired: it did not end in time.
        """
        assert self._process is not None
        return self._process.wait(self._stop_s)

    def end(self) -> int:
        """Interrupt it if it runs, and `wait`."""
        if self.is_running:
            self.interrupt()
        return self.wait()

    def _wait_until_ready(self) -> None:
        give_up_at = time.monotonic() + self._start_s
        while _READY not in self.output:
            if not self.is_running:
                raise RuntimeError(f"expected herd serve to start, found it ended:\n{self.output}")
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"expected herd serve to be ready within {self._start_s:g} s:\n{self.output}")
            time.sleep(_POLL_S)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
