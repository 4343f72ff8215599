"""One pod: a network, processes, mounts, shared memory and a name of its own; ended as a kubelet ends one."""

from __future__ import annotations

import http.client
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tests.conftest import ROOT

_BRIDGE = "pods"
_NETWORK = "10.77.0"
HOST = f"{_NETWORK}.1"
"""Where pods reach this machine."""
_WAIT_S = 20.0
_AGENT_PORT = 52365
_SPACES = ("--net", "--pid", "--mount", "--uts", "--ipc")
_KUBECONFIG = "/tmp/kubeconfig"
_ENTER = """
set -e
hostname {name}
until ip link show eth0 >/dev/null 2>&1; do sleep 0.05; done
ip address add {address}/24 dev eth0; ip link set eth0 up; ip link set lo up; ip route add default via {host}
mkdir -p {folder}/tmp {folder}/etc {folder}/work
for each in {kept}; do
  case $each in /tmp/*) mkdir -p {folder}$each; mount --bind $each {folder}$each;; esac
done
mount -t overlay overlay -o lowerdir=/etc,upperdir={folder}/etc,workdir={folder}/work /etc
mkdir -p /etc/herd; cp {folder}/herd.yaml /etc/herd/herd.yaml; cp {folder}/kubeconfig {folder}/tmp/kubeconfig
mount -t tmpfs tmpfs /dev/shm
mount --rbind {folder}/tmp /tmp
cd /
exec /bin/bash -c -- {start}
"""


def succeeds(url: str, timeout_s: float) -> bool:
    """Tell whether an HTTP probe does."""
    try:
        with urllib.request.urlopen(url, timeout=timeout_s):
            return True
    except (OSError, http.client.HTTPException):
        return False


def make_network() -> None:
    """Make the network that pods are in; this process must be in a network namespace of its own."""
    for command in (
        "link set lo up",
        f"link add {_BRIDGE} type bridge",
        f"address add {HOST}/24 dev {_BRIDGE}",
        f"link set {_BRIDGE} up",
    ):
        subprocess.run(["ip", *command.split()], check=True)


class Pod:
    """Runs from `start` to `end`.

    Args:
        name: of the pod.
        number: of this pod among all there ever were, 2 to 254: its address ends so.
        folder: for its files.
        start: the container's command, for a shell.
        environment: of the container.
        files: text by name: herd.yaml and kubeconfig.
    """

    def __init__(
        self,
        name: str,
        number: int,
        folder: Path,
        start: str,
        environment: Mapping[str, str],
        files: Mapping[str, str],
    ) -> None:
        self.name = name
        self.address = f"{_NETWORK}.{number}"
        self._link = f"pod{number}"
        self._folder = folder
        self._start = start
        self._environment = {
            "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),  # in an image Herd is installed
            "KUBECONFIG": _KUBECONFIG,
            **environment,
        }
        self._files = files
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def runs(self) -> bool:
        """Tell whether its main process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_well(self) -> bool:
        """Tell whether Ray runs in it: what its liveness probe asks."""
        return succeeds(f"http://{self.address}:{_AGENT_PORT}/api/local_raylet_healthz", timeout_s=5)

    def start(self) -> None:
        """Begin, also once more after its main process has ended; returns before Ray runs."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for name, text in self._files.items():
            (self._folder / name).write_text(text)
        kept = " ".join(shlex.quote(each) for each in {str(ROOT), sys.prefix, sys.base_prefix, str(Path.home())})
        script = _ENTER.format(
            name=self.name,
            address=self.address,
            host=HOST,
            folder=self._folder,
            kept=kept,
            start=shlex.quote(self._start),
        )
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ["unshare", *_SPACES, "--fork", "--kill-child", "--mount-proc", "/bin/bash", "-c", script],
                env=self._environment,
                stdout=log,
                stderr=log,
            )
        self._connect(self._process.pid)

    def signal(self, number: int) -> None:
        """Send a signal to its main process."""
        if self._process is not None:
            with suppress(ProcessLookupError, IndexError):
                os.kill(_children(self._process.pid)[0], number)

    def end(self, grace_s: float) -> float:
        """End it: SIGTERM, and SIGKILL if that is not enough; return the seconds that took."""
        began = time.monotonic()
        self.signal(signal.SIGTERM)
        assert self._process is not None
        try:
            self._process.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.signal(signal.SIGKILL)  # the namespace's first process takes all others along
            self._process.wait(_WAIT_S)
        return time.monotonic() - began

    def _connect(self, pid: int) -> None:
        give_up_at = time.monotonic() + _WAIT_S
        while os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"expected pod {self.name} to begin within {_WAIT_S:g} s; see {self._folder}/log")
            time.sleep(0.01)
        # The kernel takes a while to clear away the network of a pod that has ended, and the link with it.
        subprocess.run(["ip", "link", "delete", self._link], stderr=subprocess.DEVNULL, check=False)
        for command in (
            f"link add {self._link} type veth peer name eth0 netns {pid}",
            f"link set {self._link} master {_BRIDGE} up",
        ):
            subprocess.run(["ip", *command.split()], check=True)


def _children(pid: int) -> list[int]:
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
