"""The life of `herd serve`: check, start, serve, drain, end, and no process left behind.

main thread    check -> show progress ----> wait for signals ------------> kill whatever is left
Ray's thread            start Ray, Serve, deploy -> ready ... drain, stop
"""

from __future__ import annotations

import sys
import time
import traceback

from rich.console import Console

from cluster.config import ClusterConfig
from cluster.launch.endpoints import Endpoints
from cluster.launch.processes import VitalChildren, adopt_orphans, kill_descendants
from cluster.launch.progress import StartupDisplay
from cluster.launch.ray_session import RaySession
from cluster.launch.ray_thread import RayThread, State
from cluster.launch.signals import EndRequests
from cluster.launch.start_checks import check_start, plan_start
from cluster.launch.workspace import Workspace
from protos.errors import InternalError, ServingError

_POLL_S = 0.1
"""Seconds that running requests have to finish after the first Ctrl-C."""
_STOP_S = 20.0
"""Seconds that Ray has to end by itself after that."""

SERVED, INTERRUPTED = 0, 130
"""Exit codes: ended when told to; told to end before it served."""


class Server:
    """One run of `herd serve`.

    Args:
        settings: checked.
        console: where to write before Ray starts.
    """

    def __init__(self, settings: ClusterConfig, console: Console) -> None:
        self._settings = settings
        self._console = console
        self._ends = EndRequests()
        self._endpoints = Endpoints(
            http_host=settings.http.host,
            http_port=settings.http.port,
            grpc_port=settings.grpc.port,
            has_tls=settings.tls.files is not None,
            asks_for_certificate=settings.tls.client_ca is not None,
        )

    def run(self) -> int:
        """Serve until told to end; return the exit code.

        Raises:
            ServingError: it cannot start, or it broke.
        """
        self._ends.install()
        check_start(self._settings)
        with StartupDisplay(self._console) as display:
            display.phase("Model files")
            plan = plan_start(self._settings)
            display.end_phase()
        if plan.devices.note:
            self._console.print(plan.devices.note, style="dim", markup=False)
        workspace = Workspace()
        workspace.capture_output()
        self._console = Console(file=workspace.stdout, highlight=False, soft_wrap=True)
        adopt_orphans()
        session = RaySession(workspace.folder, keeps_spares=self._settings.experts.warm_spares != 0)
        try:
            code = self._run_ray(
                RayThread(session, plan, self._endpoints, self._settings.limits.drain_s), plan.model_name
            )
            workspace.is_of_use = False
        except ServingError as error:
            error.message += f"\nLogs: {workspace.logs}"
            raise
        finally:
            if left := kill_descendants():
                self._console.print(f"These processes could not be killed: {left}")
            workspace.close()
        return code

    def _run_ray(self, thread: RayThread, model_name: str) -> int:
        thread.start()
        with StartupDisplay(self._console) as display:
            while thread.state == State.STARTING:
                self._ends.install()  # Ray sets handlers of its own while it starts
                if self._ends.wait(seen=0, timeout_s=_POLL_S):
                    return INTERRUPTED
                display.phase(thread.phase)
                display.replicas(thread.progress)
            _raise_error(thread)
            display.end_phase()
        self._ends.install()
        vital = VitalChildren("raylet", "gcs_server")
        self._console.print(
            f"herd is ready · {self._endpoints.http} (OpenAI) · {self._endpoints.grpc} (gRPC) · model {model_name}"
        )
        while not self._ends.wait(seen=0, timeout_s=1.0):
            if dead := vital.dead():
                raise InternalError(
                    f"expected Ray to live as long as Herd, found {' and '.join(dead)} gone: start again"
                )
        return self._end(thread)

    def _end(self, thread: RayThread) -> int:
        """Drain and stop; a second request to end cuts that short."""
        drain_s = self._settings.limits.drain_s
        self._console.print(f"ending: requests that run have {drain_s:g} s to finish; Ctrl-C again ends them at once")
        thread.tell_to_stop()
        give_up_at = time.monotonic() + drain_s + _STOP_S
        while thread.state != State.ENDED and time.monotonic() < give_up_at:
            if self._ends.wait(seen=1, timeout_s=_POLL_S):
                break
        return SERVED


def _raise_error(thread: RayThread) -> None:
    """Raise what Ray's thread ended with."""
    error = thread.error
    if error is None:
        return
    if isinstance(error, ServingError):
        raise error
    traceback.print_exception(error, file=sys.stderr)  # into the log
    raise InternalError(f"expected Ray to start and to end, found {type(error).__name__}: {error}") from error
