"""A replica's side of the StartupBoard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from cluster.directory_actor import find_directories
from cluster.startup_board import ReplicaProgress
from experts.startup import StartupPhases
from protos.errors import InternalError, ServingError

_PERIOD_S = 0.1
_FAILURE_PATIENCE_S = 10.0


class StartupReport:
    """Reports one replica's progress. Best effort: a start never fails for want of a report.

    Args:
        replica_id: who reports.
        app: name of the application.
        deployment: the deployment the replica belongs to.
        directory_deployment: whose directory keeps the board.
    """

    def __init__(self, *, replica_id: str, app: str, deployment: str, directory_deployment: str) -> None:
        self._app = app
        self._directory_deployment = directory_deployment
        self._last = ReplicaProgress(replica_id=replica_id, deployment=deployment, phase="loading")
        self._directory: ActorHandle | None = None
        self._next_at = 0.0

    def loading(self, done_bytes: int, total_bytes: int) -> None:
        """Say how many bytes of weights were read. Cheap: most calls send nothing."""
        self._last = replace(self._last, phase="loading", done_bytes=done_bytes, total_bytes=total_bytes)
        self._send(at_once=done_bytes >= total_bytes)

    def waiting(self, what: str) -> None:
        """Say what the replica waits for."""
        self._last = replace(self._last, phase="waiting", waits_for=what)
        self._send()

    def ready(self, startup: StartupPhases | None = None) -> None:
        """Say that the replica serves, and what took how long until then; again once more is known."""
        done_bytes = self._last.total_bytes
        self._last = replace(self._last, phase="ready", done_bytes=done_bytes, waits_for="", startup=startup)
        self._send(at_once=True)

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Report an exception that passes, before the replica dies of it."""
        try:
            yield
        except Exception as error:
            self._last = replace(self._last, phase="failed", error=_explain(error))
            self._send_failure()
            raise

    def _send(self, *, at_once: bool = False) -> None:
        if time.monotonic() < self._next_at and not at_once:
            return
        self._next_at = time.monotonic() + _PERIOD_S
        with suppress(RayError, TimeoutError):
            if self._directory is None:
                self._directory = next(iter(find_directories(self._app, self._directory_deployment)), None)
            if self._directory is not None:
                self._directory.report.remote(self._last)

    def _send_failure(self) -> None:
        """Wait for the directory to be there and to have understood: nobody reports after us."""
        give_up_at = time.monotonic() + _FAILURE_PATIENCE_S
        while time.monotonic() < give_up_at:
            for directory in find_directories(self._app, self._directory_deployment):
                try:
                    ray.get(directory.report.remote(self._last), timeout=_FAILURE_PATIENCE_S)
                except (RayError, TimeoutError):
                    continue
                else:
                    return
            time.sleep(_PERIOD_S)


def _explain(error: Exception) -> ServingError:
    if isinstance(error, ServingError):
        return error
    return InternalError(f"expected the replica to start, found {type(error).__name__}: {error}; its log says where")
