"""Keeps an expert replica in the directory for as long as it lives."""

from __future__ import annotations

import logging
import threading

import ray
from ray.exceptions import RayError

from cluster.directory import ExpertReplica
from cluster.directory_actor import find_directories

_LOG = logging.getLogger(__name__)
_CALL_TIMEOUT_S = 2.0


class Registration:
    """A thread that renews a replica's lease, and registers it with directories that do not know it.

    So a directory that restarts, or a second one, knows every replica a heartbeat later.

    Args:
        replica: what to register.
        app: name of the application.
        deployment: whose directories to register with.
        period_s: seconds between heartbeats; a fraction of the lease.
    """

    def __init__(self, replica: ExpertReplica, *, app: str, deployment: str, period_s: float) -> None:
        self._replica = replica
        self._app = app
        self._deployment = deployment
        self._period_s = period_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registration", daemon=True)

    def start(self) -> None:
        """Start the heartbeats; the first comes at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the heartbeats and deregister. Blocks for a few seconds at most. Idempotent."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        found_any = False
        while True:
            found_any = self._beat() or found_any
            # Until the first directory is there, the whole start waits for this.
            if self._stopping.wait(self._period_s if found_any else 0.1):
                break
        self._deregister()

    def _beat(self) -> bool:
        """Renew or register everywhere; tell whether a directory was found."""
        directories = []
        try:
            directories = find_directories(self._app, self._deployment)
            for directory in directories:
                known = ray.get(directory.renew.remote(self._replica.holder.replica_id), timeout=_CALL_TIMEOUT_S)
                if not known:
                    ray.get(directory.register.remote(self._replica), timeout=_CALL_TIMEOUT_S)
        except (RayError, TimeoutError) as error:
            _LOG.warning("the directory did not take a heartbeat, the next one follows: %s", error)
        return bool(directories)

    def _deregister(self) -> None:
        try:
            calls = [
                directory.deregister.remote(self._replica.holder.replica_id)
                for directory in find_directories(self._app, self._deployment)
            ]
            ray.get(calls, timeout=_CALL_TIMEOUT_S)
        except (RayError, TimeoutError) as error:
            _LOG.warning("could not deregister, the lease will end: %s", error)
