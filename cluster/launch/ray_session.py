"""Ray and Ray Serve on this machine, from start to end. Ray is imported where it is used: that takes a second."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.names import APP, PRELOADED, ROUTER
from cluster.startup_board import ReplicaProgress
from models.cpu.environment import CPU_ENVIRONMENT
from protos.errors import BadConfig, InternalError

if TYPE_CHECKING:
    from cluster.deployment_plan import DeploymentPlan

_OBJECT_STORE_BYTES = 100 * 1024**2
"""The smallest worth having: messages between deployments are small, weights never pass through it."""
_PRESTARTED = 4
"""Worker processes Ray starts while it waits for its own services."""
_CALL_TIMEOUT_S = 2.0
"""Seconds a front door has to answer while Herd drains."""
_LONGEST_MESSAGE = 2**31 - 1
"""Bytes of a message between deployments: what clients send is bounded where it comes in."""


class RaySession:
    """One Ray with one application.

    All methods must be called from one thread, and that thread must live to the end: Ray ties its processes to the
    thread that started them.

    Args:
        folder: where Ray keeps its files; short, since there will be sockets below.
        keeps_spares: whether processes that Ray starts ahead import what replicas run.
    """

    def __init__(self, folder: Path, *, keeps_spares: bool) -> None:
        self._folder = folder
        self._keeps_spares = keeps_spares

    def start_ray(self) -> None:
        """Start Ray. Blocks for some seconds."""
        os.environ.update(_environment(self._folder))
        if self._keeps_spares:
            os.environ["RAY_preload_python_modules"] = PRELOADED  # noqa: SIM112  Ray's own spelling
        os.environ.pop("RAY_ADDRESS", None)  # whatever other cluster there is, this one is our own
        import ray

        ray.init(
            address="local",
            namespace=APP,
            include_dashboard=False,
            num_cpus=_PRESTARTED,
            object_store_memory=_OBJECT_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.WARNING,
            _temp_dir=str(self._folder / "ray"),
        )

    def start_serve(self) -> None:
        """Start Serve's controller. Its proxies stay off: front doors listen by themselves."""
        from ray import serve
        from ray.serve.config import ProxyLocation

        serve.start(proxy_location=ProxyLocation.Disabled)

    def deploy(self, plan: DeploymentPlan) -> None:
        """Begin to deploy a plan.

        Raises:
            BadConfig: Ray has found fewer GPUs than it takes: replicas would wait for ever.
        """
        import ray
        from ray import serve

        from cluster.application import build_application

        num_gpus = int(ray.cluster_resources().get("GPU", 0)) if plan.num_gpus else 0
        if num_gpus < plan.num_gpus:
            raise BadConfig(
                f"router.device, experts.device: expected {plan.num_gpus} GPUs in Ray's cluster, found {num_gpus}; set "
                "them to cpu, lower the number of replicas, or see that CUDA_VISIBLE_DEVICES names all GPUs"
            )
        serve.run_many(
            [serve.RunTarget(build_application(plan), name=APP, route_prefix=None)],
            wait_for_ingress_deployment_creation=False,
            wait_for_applications_running=False,
        )

    def progress(self) -> tuple[ReplicaProgress, ...]:
        """Return how far the replicas have come; empty while the directory starts."""
        import ray
        from ray.exceptions import RayError

        from cluster.directory_actor import find_directories

        try:
            for directory in find_directories(APP, ROUTER):
                found: tuple[ReplicaProgress, ...] = ray.get(directory.progress.remote(), timeout=1)
                return found
        except (RayError, TimeoutError):
            pass
        return ()

    def is_deployed(self) -> bool:
        """Tell whether every replica serves.

        Raises:
            ServingError: one cannot be started.
        """
        from ray import serve
        from ray.serve.schema import ApplicationStatus

        for replica in self.progress():
            if replica.error is not None:
                raise replica.error
        application = serve.status().applications.get(APP)
        if application is None:
            return False
        messages = [each.message for each in application.deployments.values() if "Error:" in each.message]
        if messages or application.status == ApplicationStatus.DEPLOY_FAILED:
            raise InternalError(
                f"expected every replica to start, found: {_last_line([*messages, application.message])}"
            )
        return bool(application.status == ApplicationStatus.RUNNING)

    def drain(self) -> None:
        """Let the front doors refuse new requests."""
        self._ask_front_doors("drain")

    def is_drained(self) -> bool:
        """Tell whether every front door says that it has no sequence any more.

        Routers are not asked: one that hangs says nothing, and its sequences go on at another one.
        """
        return all(answer == 0 for answer in self._ask_front_doors("num_sequences"))

    def _ask_front_doors(self, method: str) -> list[object]:
        """Return every front door's answer, or what came instead."""
        from ray import serve
        from ray.exceptions import RayError
        from ray.serve.exceptions import RayServeException

        try:
            question = serve.get_app_handle(APP).broadcast(method)
            return list(question.results(timeout_s=_CALL_TIMEOUT_S, return_exceptions=True))
        except (RayError, RayServeException, TimeoutError) as error:
            return [error]

    def stop(self) -> None:
        """End Serve, then Ray. Blocks for some seconds."""
        import ray
        from ray import serve

        serve.shutdown()
        ray.shutdown()


def _environment(folder: Path) -> dict[str, str]:
    """Return what Ray reads from the environment, here and in the processes it starts."""
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        # A token for this Ray alone; otherwise Ray keeps one in the user's home.
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Between deployments gRPC costs a third of what Ray's streams of objects do.
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(_LONGEST_MESSAGE),
        **{name: os.environ.get(name, value) for name, value in CPU_ENVIRONMENT.items()},
        "TMPDIR": str(folder),  # what replicas leave behind goes with the folder
        # Every call between processes would be noted, for a dashboard that is not there: by each process up to 100,000,
        # and by Ray's own as many again. It took a tenth of the processors' time of a start, too.
        "RAY_task_events_report_interval_ms": "0",
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # Ray's hook for `uv run` copies the working directory
    }


def _last_line(messages: list[str]) -> str:
    """Return the end of the first message: the exception, below its traceback."""
    lines = [line for line in messages[0].splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no reason given"
