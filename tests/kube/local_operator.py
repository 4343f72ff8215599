"""What KubeRay's operator does with a RayCluster, on this machine: pods are `ray start` processes.

    RayService (of the chart) -> RayCluster -> head, with Ray's own KubeRay autoscaler beside it
                                     |
            autoscaler patches it    `-> as many `ray start` of each worker group as its `replicas` says

Resources, parameters and environment of a process are those of its group, and each has an address of its own
(127.77.0.x), so Ray takes it for a node. A pod that `workersToDelete` names is told to end by SIGTERM, and killed after
its grace period. As the operator does where an autoscaler runs, nobody else chooses which pod goes. There are no
containers, probes, Services or mounts: what has files in a pod finds none here.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.free_port import find_free_port
from benchmarks.marked_processes import MarkedProcesses
from tests.certificates import Signed
from tests.kube.api_server import FakeApiServer, Object
from tests.kube.objects import deletion

_RAY = str(Path(sys.executable).with_name("ray"))
_ADDRESS = "127.77.0.{}"
_HEAD = "headgroup"
_START_S = 120.0
_PERIOD_S = 0.1
_STARTED = "Ray runtime started"
"""What `ray start` prints when it has."""
_ONE_MACHINE = {
    # Ports that `ray start` chooses alike for every node: 0 leaves them to the kernel.
    "dashboard-agent-listen-port": "0",
    "min-worker-port": "0",
    "max-worker-port": "0",
    # No driver prints what workers log.
    "include-log-monitor": "false",
}
_NOT_HERE = ("dashboard-host",)
"""Parameters of what is left out: no test asks Ray's dashboard."""


def ray_cluster(ray_service: Object, name: str, namespace: str) -> Object:
    """Return the RayCluster that KubeRay makes of a RayService, with the fields that it adds.

    Args:
        ray_service: as the chart renders it.
        name: of the RayCluster.
        namespace: its own.
    """
    spec = json.loads(json.dumps(ray_service["spec"]["rayClusterConfig"]))
    for group in spec["workerGroupSpecs"]:
        group |= {"numOfHosts": 1, "scaleStrategy": {}}
    return {"metadata": {"name": name, "namespace": namespace, "labels": {}}, "spec": spec}


@dataclass(kw_only=True)
class _Pod:
    """A process, and all that it starts."""

    name: str
    group: str
    process: subprocess.Popen[bytes]
    marked: MarkedProcesses
    grace_s: float
    kill_at: float | None = None
    """When its grace period is over; None: nobody told it to end."""

    @property
    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def kill(self) -> None:
        """End whatever is left of it."""
        self.process.kill()
        self.process.wait()
        self.marked.kill()


@dataclass(kw_only=True)
class Access:
    """How processes reach the API server."""

    identity: Signed
    """Certificate and key that they show."""
    ca: Path
    """Who signed the server's."""
    kubeconfig: Path
    """The same for clients that read such a file."""


@dataclass(kw_only=True)
class LocalOperator:
    """Context manager: keeps processes for one RayCluster inside it, and ends them all after it.

    Args:
        api: where the RayCluster is, and pods will be.
        cluster: its name.
        namespace: its own.
        folder: for what processes write; short, as there will be sockets below.
        access: to the API server.
        update_s: seconds between two looks of the autoscaler.
    """

    api: FakeApiServer
    cluster: str
    namespace: str
    folder: Path
    access: Access
    update_s: int = 2
    _pods: dict[str, _Pod] = field(default_factory=dict)
    _others: list[_Pod] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _token: str = field(default_factory=lambda: secrets.token_hex(32))
    _stopping: threading.Event = field(default_factory=threading.Event)
    _failure: BaseException | None = None

    def __post_init__(self) -> None:
        self._gcs = f"{_ADDRESS.format(1)}:{find_free_port()}"
        self._thread = threading.Thread(target=self._run, name="operator", daemon=True)

    def __enter__(self) -> LocalOperator:
        try:
            self._start_head()
            self._thread.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()
        for pod in [*self._others, *self._pods.values()]:
            pod.kill()

    @property
    def environment(self) -> dict[str, str]:
        """Return what a client of the cluster's Ray needs."""
        return {
            **{name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def deploy(self, serve_config: Path) -> None:
        """Hand Ray Serve its configuration, as KubeRay does.

        Args:
            serve_config: `serveConfigV2` as a file.
        """
        command = [str(Path(_RAY).with_name("serve")), "run", str(serve_config), "--non-blocking"]
        done = subprocess.run(
            [*command, f"--address={self._gcs}"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=_START_S,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def check(self) -> None:
        """Fail if the operator or the autoscaler has."""
        if self._failure is not None:
            raise self._failure
        for other in self._others:
            assert not other.has_ended, f"{other.name} has ended:\n{self.log(other.name)}"

    def log(self, name: str) -> str:
        """Return what a process has printed."""
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def _start_head(self) -> None:
        spec = self._cluster()["spec"]
        head = spec["headGroupSpec"]
        host, _, port = self._gcs.partition(":")
        parameters = {"head": "", "no-monitor": "", "port": port, "include-dashboard": "false"}
        parameters |= {name: str(find_free_port()) for name in ("dashboard-port", "ray-client-server-port")}
        self._others.append(self._start_pod(head, _HEAD, "head", host, parameters))
        give_up_at = time.monotonic() + _START_S
        while _STARTED not in self.log("head"):
            assert time.monotonic() < give_up_at, f"expected Ray's head to start:\n{self.log('head')}"
            time.sleep(_PERIOD_S)
        if spec["enableInTreeAutoscaling"]:
            named = {"cluster-name": self.cluster, "cluster-namespace": self.namespace, "gcs-address": self._gcs}
            command = [_RAY, "kuberay-autoscaler", *(f"--{key}={value}" for key, value in named.items())]
            environment = {
                "AUTOSCALER_UPDATE_INTERVAL_S": str(self.update_s),
                "AUTOSCALER_METRIC_PORT": "0",
                "RAY_HEAD_POD_NAME": "head",
            }
            self._others.append(self._start("autoscaler", _HEAD, command, environment, grace_s=0))

    def _run(self) -> None:
        try:
            while not self._stopping.wait(_PERIOD_S):
                for pod in list(self._pods.values()):
                    self._look_after(pod)
                for group in self._cluster()["spec"]["workerGroupSpecs"]:
                    self._reconcile(group)
        except BaseException as error:  # noqa: BLE001  raised again by `check`
            self._failure = error

    def _cluster(self) -> Object:
        found = self.api.get("rayclusters", self.cluster, self.namespace)
        assert found is not None
        return found

    def _look_after(self, pod: _Pod) -> None:
        """Take a pod out that has ended, or that its grace period has not been enough for."""
        if pod.has_ended or (pod.kill_at is not None and time.monotonic() > pod.kill_at):
            pod.kill()
            del self._pods[pod.name]
            self.api.delete("pods", pod.name, self.namespace)

    def _reconcile(self, group: Object) -> None:
        name = group["groupName"]
        for each in group["scaleStrategy"].get("workersToDelete", ()):
            if each in self._pods:
                self._tell_to_end(self._pods[each])
        # One that is being deleted counts until it is gone (kuberay#5239).
        present = sum(pod.group == name for pod in self._pods.values())
        for _ in range(present, group["replicas"]):
            number = next(self._numbers)
            resources = {"resources": json.dumps({key: int(value) for key, value in group["resources"].items()})}
            parameters = {"address": self._gcs, **resources}
            pod = self._start_pod(group, name, f"{name}-{number}", _ADDRESS.format(number + 1), parameters)
            self._pods[pod.name] = pod

    def _tell_to_end(self, pod: _Pod) -> None:
        if pod.kill_at is not None:
            return
        found = self.api.get("pods", pod.name, self.namespace)
        assert found is not None
        found["metadata"] |= deletion(pod.grace_s)
        self.api.put("pods", found)
        pod.kill_at = time.monotonic() + pod.grace_s
        pod.process.terminate()

    def _start_pod(self, group: Object, group_name: str, name: str, address: str, more: Mapping[str, str]) -> _Pod:
        """Start Ray as a group of the RayCluster says, and tell the API server of its pod."""
        spec = group["template"]["spec"]
        container = spec["containers"][0]
        limits = container["resources"]["limits"]
        given = {key: value for key, value in group["rayStartParams"].items() if key not in _NOT_HERE}
        parameters = {"num-cpus": limits["cpu"], **given, **more, **_ONE_MACHINE, "node-ip-address": address}
        # A pod has its own file system, and Ray its own folder in it.
        parameters["temp-dir"] = str(self.folder / name)
        flags = [f"--{key}={value}" if value else f"--{key}" for key, value in parameters.items()]
        command = [_RAY, "start", "--block", *flags]
        node = f"node-of-{name}"
        # What a variable takes from elsewhere, it takes of its pod: the node that it runs on.
        environment = {each["name"]: each.get("value", node) for each in container["env"]} | {
            "HOME": str(self.folder),
            "RAY_CLOUD_INSTANCE_ID": name,
            "RAY_NODE_TYPE_NAME": group_name,
        }
        pod = self._start(name, group_name, command, environment, spec["terminationGracePeriodSeconds"])
        kind = "head" if group_name == _HEAD else "worker"
        labels = {"ray.io/cluster": self.cluster, "ray.io/group": group_name, "ray.io/node-type": kind}
        self.api.put(
            "pods",
            {
                "metadata": {"name": name, "namespace": self.namespace, "labels": labels},
                "spec": {**spec, "nodeName": node},
                "status": {
                    "phase": "Running",
                    "podIP": address,
                    "containerStatuses": [{"state": {"running": {}}}],
                },
            },
        )
        return pod

    def _start(
        self, name: str, group: str, command: Sequence[str], environment: Mapping[str, str], grace_s: float
    ) -> _Pod:
        marked = MarkedProcesses()
        reach = {
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT_HTTPS": str(self.api.port),
            "KUBECONFIG": str(self.access.kubeconfig),
            "RAY_KUBERAY_CA_CERT_PATH": str(self.access.ca),
            "RAY_KUBERAY_CLIENT_CERT_PATH": str(self.access.identity.cert),
            "RAY_KUBERAY_CLIENT_KEY_PATH": str(self.access.identity.key),
            "RAY_CLUSTER_NAME": self.cluster,
            "RAY_USAGE_STATS_KUBERAY_IN_USE": "1",
        }
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**self.environment, **reach, **environment, **marked.environment},
                start_new_session=True,
            )
        return _Pod(name=name, group=group, process=process, marked=marked, grace_s=grace_s)
