"""Keeps idle processes on a node for the replicas that start next.

Ray starts a process for an actor when it has no idle one. One that has run a task is not given to an actor, so spares
are not made by tasks: Ray's node is asked to start processes ahead, as it does by itself when it starts. They import
`cluster.preload` and wait; Ray gives them to any actor whose runtime environment is empty.

One replica per node does this, whichever holds the lock: when it ends, another one takes over.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from pathlib import Path

import grpc
import ray
from ray._private.grpc_utils import init_grpc_channel
from ray.core.generated import node_manager_pb2, node_manager_pb2_grpc
from ray.exceptions import RayError

from cluster.launch.processes import descendants
from cluster.warm_process import SPARE, lock_path

_LOG = logging.getLogger(__name__)
_PERIOD_S = 1.0
_LOOKS = 3
"""So many times in a row a spare has to be missing: whoever took it has the processor for itself for that long."""
_KEPT_S = 3600
"""Seconds that Ray keeps an idle process where it keeps fewer than there are (it keeps one per CPU not in use)."""
_CALL_TIMEOUT_S = 5.0
_NEW = "default_worker.py"
"""In the command line of a process that is not yet known to Ray."""


class SpareNeed:
    """Decides when to ask for spares.

    Args:
        count: how many idle processes there should be.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._missed = 0

    def look(self, num_spares: int, num_new: int) -> int:
        """Return how many processes to ask for now.

        Args:
            num_spares: idle processes that have imported everything, or are about to.
            num_new: processes on their way; somebody may wait for them.
        """
        if num_new or num_spares >= self._count:
            self._missed = 0
            return 0
        self._missed += 1
        if self._missed < _LOOKS:
            return 0
        self._missed = 0
        return self._count - num_spares


class SpareProcesses:
    """Keeps spares on this node while this replica lives.

    Args:
        count: how many; 0: none, and nothing is done.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._need = SpareNeed(count)
        self._raylet_pid = os.getppid()
        self._spares: list[int] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="spare processes", daemon=True)

    def start(self) -> None:
        """Begin, in a thread of its own."""
        if self._count:
            self._thread.start()

    def stop(self) -> None:
        """Leave it to others. The spares stay."""
        self._stopping.set()

    def _run(self) -> None:
        with lock_path().open("w") as lock:
            while not self._stopping.wait(_PERIOD_S):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._look()
                except BlockingIOError:
                    continue  # another replica does it
                except (OSError, RayError, grpc.RpcError) as error:
                    _LOG.warning("no process will be kept ready on this node: %s", error)
                    return

    def _look(self) -> None:
        if len(self._spares) >= self._count and all(SPARE in _title(pid) for pid in self._spares):
            return  # as before: no need to look at every process there is
        titles = {pid: _title(pid) for pid in descendants(self._raylet_pid)}
        self._spares = [pid for pid, title in titles.items() if SPARE in title]
        missing = self._need.look(len(self._spares), sum(_NEW in title for title in titles.values()))
        if missing:
            _start_ahead(missing)


def _start_ahead(count: int) -> None:
    """Let this node's Ray start processes that nobody has asked for."""
    node_id = ray.get_runtime_context().get_node_id()
    node = next(each for each in ray.nodes() if each["NodeID"] == node_id)
    with init_grpc_channel(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}") as channel:
        request = node_manager_pb2.PrestartWorkersRequest(num_workers=count, keep_alive_duration_secs=_KEPT_S)
        node_manager_pb2_grpc.NodeManagerServiceStub(channel).PrestartWorkers(request, timeout=_CALL_TIMEOUT_S)


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""
