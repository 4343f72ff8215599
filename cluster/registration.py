"""Keeps a replica in the directory for as long as it lives, and brings back what the directory wants of it."""

from __future__ import annotations

import logging
import threading
from typing import Any, Protocol

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError

from cluster.directory_actor import find_directories

_LOG = logging.getLogger(__name__)
_CALL_TIMEOUT_S = 2.0
_LOOK_EVERY = 8
"""Heartbeats after which directories are looked for again: a second one shows only so."""


class Member(Protocol):
    """What a replica tells directories. Called from the registration's thread; to register, from whoever announces."""

    @property
    def replica_id(self) -> str:
        """Return its name."""

    @property
    def registered(self) -> object:
        """Return what `register` tells: another object once it has changed."""

    def heartbeat(self, directory: ActorHandle) -> Any:
        """Call a directory to extend the lease; return the call, whose answer is None or False if it knows nothing."""

    def heard(self, answer: Any) -> None:
        """Take the answer of a directory that knows the replica. It must not block."""

    def register(self, directory: ActorHandle) -> Any:
        """Call a directory to register; return the call."""


class Registration:
    """A thread that renews a replica's lease, and registers it with directories that do not know it as it is.

    So a directory that restarts, or a second one, or one that missed a change, knows a heartbeat or two later.

    Args:
        member: the replica.
        app: name of the application.
        deployment: whose directories to register with.
        period_s: seconds between heartbeats; a fraction of the lease.
    """

    def __init__(
        self,
        member: Member,
        *,
        app: str,
        deployment: str,
        period_s: float,
    ) -> None:
        self._member = member
        self._app = app
        self._deployment = deployment
        self._period_s = period_s
        self._directories: list[ActorHandle] = []
        self._beats_since_look = _LOOK_EVERY
        self._registering = threading.Lock()
        self._told: dict[ActorHandle, object] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registration", daemon=True)

    def start(self) -> None:
        """Start the heartbeats; the first comes at once."""
        self._thread.start()

    def announce(self) -> None:
        """Tell the directories at once that the replica has changed, which else the next heartbeat does.

        For any thread; blocks for seconds at most.
        """
        with self._registering:
            if not self._stopping.is_set():  # else it would come back after it has left
                self._register(self._directories)

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
        with self._registering:
            self._deregister()

    def _beat(self) -> bool:
        """Renew or register everywhere; tell whether a directory was found."""
        self._look()
        for directory in list(self._directories):
            try:
                answer = ray.get(self._member.heartbeat(directory), timeout=_CALL_TIMEOUT_S)
            except (RayError, TimeoutError) as error:
                _LOG.warning("the directory did not take a heartbeat, the next one follows: %s", error)
                self._beats_since_look = _LOOK_EVERY
                continue
            is_known = answer is not None and answer is not False
            if not is_known or self._told.get(directory) is not self._member.registered:
                with self._registering:
                    self._register([directory])
            if is_known:
                self._member.heard(answer)
        return bool(self._directories)

    def _look(self) -> None:
        """Find the directories, now and then and when one has failed: to list a cluster's actors is not cheap."""
        self._beats_since_look += 1
        if self._directories and self._beats_since_look < _LOOK_EVERY:
            return
        try:
            self._directories = find_directories(self._app, self._deployment)
            with self._registering:
                self._told = {each: told for each, told in self._told.items() if each in self._directories}
            self._beats_since_look = 0
        except (RayError, TimeoutError) as error:
            _LOG.warning("could not look for the directory, the next heartbeat does: %s", error)

    def _register(self, directories: list[ActorHandle]) -> None:
        for directory in directories:
            registered = self._member.registered
            try:
                ray.get(self._member.register(directory), timeout=_CALL_TIMEOUT_S)
                self._told[directory] = registered
            except (RayError, TimeoutError) as error:
                _LOG.warning("the directory did not register the replica, the next heartbeat does: %s", error)

    def _deregister(self) -> None:
        try:
            calls = [
                directory.deregister.remote(self._member.replica_id)
                for directory in find_directories(self._app, self._deployment)
            ]
            ray.get(calls, timeout=_CALL_TIMEOUT_S)
        except (RayError, TimeoutError) as error:
            _LOG.warning("could not deregister, the lease will end: %s", error)
