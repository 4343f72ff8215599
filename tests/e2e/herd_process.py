"""`herd serve` as users run it: a process on free ports, whose every descendant can be found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from cluster.machine import find_free_port

HERD = str(Path(sys.executable).parent / "herd")
READY = "herd is ready"
_MARKER = "HERD_TEST_RUN"


class HerdProcess:
    """Context manager: a running Herd, ended by SIGINT.

    Args:
        args: for `herd serve`, ports excepted.
    """

    def __init__(self, *args: str) -> None:
        self.http_port, self.grpc_port = find_free_port(), find_free_port()
        self.grpc_address = f"localhost:{self.grpc_port}"
        self.base_url = f"http://localhost:{self.http_port}"
        self._args = [*args, "--http-port", str(self.http_port), "--grpc-port", str(self.grpc_port)]
        self._marker = f"{_MARKER}={uuid.uuid4().hex}"
        descriptor, name = tempfile.mkstemp(prefix="herd-test-", suffix=".log")
        os.close(descriptor)
        self._log = Path(name)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def output(self) -> str:
        """Everything it printed."""
        return self._log.read_text()

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    def start(self) -> None:
        """Start it, in a session of its own as a terminal would."""
        name, value = self._marker.split("=")
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [HERD, "serve", *self._args],
                env={**os.environ, name: value},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_for(self, text: str, timeout_s: float = 180) -> None:
        """Wait until it has printed a text."""
        give_up_at = time.monotonic() + timeout_s
        while text not in self.output:
            assert self.process.poll() is None, f"herd serve ended with {self.process.returncode}:\n{self.output}"
            assert time.monotonic() < give_up_at, f"no {text!r} within {timeout_s} s:\n{self.output}"
            time.sleep(0.1)

    def interrupt(self) -> None:
        """Send what Ctrl-C in a terminal sends: SIGINT to every process of the session's group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self, timeout_s: float = 60) -> int:
        """Return its exit code once it has ended."""
        return self.process.wait(timeout_s)

    def leftovers(self) -> list[str]:
        """Return the command lines of processes it started that still live."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            try:
                if self._marker.encode() in path.read_bytes():
                    found.append((path.parent / "cmdline").read_text().replace("\0", " "))
            except OSError:
                continue
        return found

    def __enter__(self) -> HerdProcess:
        self.start()
        try:
            self.wait_for(READY)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.interrupt()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                raise
        self._log.unlink()
