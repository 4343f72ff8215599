"""The thread that owns Ray: starts an application, waits to be told, drains and stops it."""

from __future__ import annotations

import threading
import time
from enum import Enum, auto
from typing import TYPE_CHECKING

from cluster.launch.endpoints import Endpoints
from cluster.launch.ray_session import RaySession
from cluster.startup_board import ReplicaProgress
from protos.errors import InternalError

if TYPE_CHECKING:
    from cluster.deployment_plan import DeploymentPlan

_POLL_S = 0.1
_LISTEN_S = 60.0
"""Seconds the front door has to answer after every replica is ready."""


class State(Enum):
    """Where the thread is."""

    STARTING = auto()
    READY = auto()
    DRAINING = auto()
    STOPPING = auto()
    ENDED = auto()


class RayThread:
    """Others read the public attributes at any time; only this thread changes them.

    It lives as long as Ray does: Ray ties its processes to the thread that started them.

    Args:
        session: used by this thread only.
        plan: what to deploy.
        endpoints: where it will answer.
        drain_s: seconds that running requests have to finish once told to stop.
    """

    def __init__(self, session: RaySession, plan: DeploymentPlan, endpoints: Endpoints, drain_s: float) -> None:
        self.state = State.STARTING
        self.phase = "Ray"
        """What is being started."""
        self.progress: tuple[ReplicaProgress, ...] = ()
        self.error: BaseException | None = None
        """Why it ended, unless it was told to."""
        self._session = session
        self._plan = plan
        self._endpoints = endpoints
        self._drain_s = drain_s
        self._told_to_stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ray", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def tell_to_stop(self) -> None:
        """Let an application that is ready drain and end."""
        self._told_to_stop.set()

    def _run(self) -> None:
        try:
            self._start()
            self.state = State.READY
            self._told_to_stop.wait()
            self.state = State.DRAINING
            self._drain()
            self.state = State.STOPPING
            self._session.stop()
        except BaseException as error:  # noqa: BLE001  the main thread tells the user
            self.error = error
        self.state = State.ENDED

    def _start(self) -> None:
        self._session.start_ray()
        self.phase = "Ray Serve"
        self._session.start_serve()
        self.phase = "Replicas"
        self._session.deploy(self._plan)
        while not self._session.is_deployed():
            self.progress = self._session.progress()
            time.sleep(_POLL_S)
        self.phase = "Ports"
        give_up_at = time.monotonic() + _LISTEN_S
        while not self._endpoints.answer():
            if time.monotonic() >= give_up_at:
                raise InternalError(
                    f"expected answers from {self._endpoints.http} and {self._endpoints.grpc} within {_LISTEN_S:g} s, "
                    "found none; the front door's log says why"
                )
            time.sleep(_POLL_S)

    def _drain(self) -> None:
        give_up_at = time.monotonic() + self._drain_s
        self._session.drain()
        while time.monotonic() < give_up_at:
            if self._session.is_drained():
                return
            time.sleep(_POLL_S)
