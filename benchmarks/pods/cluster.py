"""All pods of a release: KubeRay, which makes them, replaces those that are gone and deploys the application."""

from __future__ import annotations

import json
import secrets
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.pods.pod import HOST, Pod
from benchmarks.pods.rendered import HEAD, RAY_PORT, PodGroup, Rendered
from benchmarks.pods.service import Service
from cluster.names import APP, FRONT_DOOR
from cluster.replica_roster import ServeReplica, read_details
from tests.kube.api_server import FakeApiServer
from tests.kube.kubeconfig import write_kubeconfig
from tests.kube.objects import CLUSTER, NAMESPACE, deletion, node, pod

_DASHBOARD_PORT = 8265
_WAIT_S = 300.0
_STARTS_AT_ONCE = 2
"""On one machine they keep each other from starting in time."""


class PodCluster:
    """Context manager: the pods run inside it.

    Args:
        release: what there is to run.
        api: hears of pods and nodes, each pod on a node of its own.
        folder: for files of pods; short.
    """

    def __init__(self, release: Rendered, api: FakeApiServer, folder: Path) -> None:
        self._release = release
        self._api = api
        self._folder = folder
        self._groups = {each.name: each for each in release.groups}
        self._pods: dict[str, tuple[PodGroup, Pod]] = {}
        self._lock = threading.Lock()
        self._num_made = 1  # this machine
        self._deleted: set[str] = set()
        self._stopping = threading.Event()
        self._restarting = threading.Thread(target=self._keep_running, name="kubelet", daemon=True)
        self._failure: Exception | None = None
        self._token = secrets.token_hex(32)
        front_doors = self._groups["front-door"]
        assert front_doors.probe is not None
        self.service = Service([release.grpc_port, release.http_port], front_doors.probe, release.http_port)

    def __enter__(self) -> PodCluster:
        self._folder.mkdir(exist_ok=True)
        self._kubeconfig = write_kubeconfig(self._folder, self._api.url).read_text()
        self.service.__enter__()
        self._restarting.start()
        self._head = self._make(self._groups[HEAD])
        self.wait(lambda: self._dashboard("GET") is not None)
        groups = [group for group in self._release.groups[1:] for _ in range(group.num_pods)]
        with ThreadPoolExecutor(_STARTS_AT_ONCE) as pool:
            list(pool.map(self._make_well, groups))
        self.wait(lambda: self._dashboard("PUT", self._release.application) is not None)
        self.wait(lambda: self.is_whole)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._restarting.join()
        for _, each in self._pods.values():
            each.end(0)
        self.service.__exit__()

    def wait(self, holds: Callable[[], bool]) -> None:
        """Look again and again until something holds.

        Raises:
            TimeoutError: it did not in time.
            RuntimeError: a pod that ended by itself could not be started again.
        """
        give_up_at = time.monotonic() + _WAIT_S
        while not holds():
            if self._failure is not None:
                raise RuntimeError("expected pods to start again, found one that does not") from self._failure
            if time.monotonic() > give_up_at:
                raise TimeoutError(f"it did not come to that within {_WAIT_S:g} s")
            time.sleep(0.1)

    def pods(self, group: str) -> list[Pod]:
        """Return the pods of a group, by name."""
        with self._lock:
            return [pod for its, pod in self._pods.values() if its.name == group]

    def replicas_of(self, pod: Pod) -> list[ServeReplica]:
        """Return what Ray Serve has in a pod."""
        return [each for each in self._replicas() if each.host == pod.address]

    @property
    def is_whole(self) -> bool:
        """Tell whether all replicas run, and all front doors are led to."""
        details = self._dashboard("GET")
        application = (details or {"applications": {}})["applications"].get(APP)
        if application is None or application["status"] != "RUNNING":
            return False
        replicas = self._replicas()
        front_doors = {each.host for each in replicas if each.deployment == FRONT_DOOR}
        return {each.state for each in replicas} == {"RUNNING"} and set(self.service.led) == front_doors

    def drains(self, pod: Pod) -> bool:
        """Tell whether Herd has marked a pod's Ray node as draining: it says so among its events."""
        status = _ask(f"http://{HOST}:{self._release.http_port}/status.json", {}) or {"events": []}
        return any(each["subject"] == pod.address and each["text"].startswith("drains") for each in status["events"])

    def taint(self, pod: Pod, taint: str) -> None:
        """Give a pod's node a taint."""
        self._api.put("nodes", node(f"node-of-{pod.name}", taint))

    def delete(self, pod: Pod) -> float:
        """Delete a pod as `kubectl delete` does, replace it when it is gone; return the seconds until then."""
        group, _ = self._pods[pod.name]
        self._deleted.add(pod.name)
        self._tell(group, pod, is_deleted=True)
        self.service.terminate(pod)
        took_s = pod.end(group.grace_s)
        self.service.remove(pod)
        self._api.delete("pods", pod.name, NAMESPACE)
        with self._lock:
            del self._pods[pod.name]
        self._make(group)  # not before: KubeRay counts a pod that is being deleted (kuberay#5239)
        return took_s

    def _make_well(self, group: PodGroup) -> None:
        made = self._make(group)
        self.wait(lambda: made.is_well)

    def _keep_running(self) -> None:
        try:
            self._restart()
        except Exception as error:  # noqa: BLE001  a thread's end: `wait` raises it where somebody sees it
            self._failure = error

    def _restart(self) -> None:
        """Start pods again whose main process has ended by itself, as a kubelet does."""
        while not self._stopping.wait(1.0):
            with self._lock:
                ended = [pod for _, pod in self._pods.values() if not pod.runs and pod.name not in self._deleted]
            for each in ended:
                print(f"{each.name} ended by itself: it starts again", flush=True)
                each.start()

    def _make(self, group: PodGroup) -> Pod:
        with self._lock:
            self._num_made += 1
            number = self._num_made
        name = f"{CLUSTER}-{group.name}-{number}"
        head = "" if group.name == HEAD else self._head.address
        environment = {
            **{key: value.replace("{node}", f"node-of-{name}") for key, value in group.environment.items()},
            "KUBERNETES_SERVICE_HOST": HOST,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "RAY_CLUSTER_NAME": CLUSTER,
            "RAY_CLOUD_INSTANCE_ID": name,
            "RAY_NODE_TYPE_NAME": group.name,
            "RAY_PORT": str(RAY_PORT),
            "RAY_ADDRESS": f"{head or '127.0.0.1'}:{RAY_PORT}",
            "RAY_gcs_server_request_timeout_seconds": "5",
            "RAY_timeout_ms_task_wait_for_death_info": "0",
            "RAY_SERVE_KV_TIMEOUT_S": "5",
        }
        files = {"herd.yaml": self._release.settings, "kubeconfig": self._kubeconfig}
        made = Pod(name, number, self._folder / str(number), group.start.replace("{head}", head), environment, files)
        made.start()
        with self._lock:
            self._pods[name] = group, made
        self._api.put("nodes", node(f"node-of-{name}"))
        self._tell(group, made)
        if group.probe is not None:
            self.service.add(made)
        return made

    def _tell(self, group: PodGroup, each: Pod, *, is_deleted: bool = False) -> None:
        found = pod(each.name, f"node-of-{each.name}", each.address)
        if is_deleted:
            found["metadata"] |= deletion(group.grace_s)
        self._api.put("pods", found)

    def _replicas(self) -> tuple[ServeReplica, ...]:
        details = self._dashboard("GET")
        return () if details is None else read_details(details, APP)

    def _dashboard(self, method: str, body: object = None) -> dict[str, Any] | None:
        """Ask what KubeRay asks of Ray's dashboard; None: it does not answer."""
        url = f"http://{self._head.address}:{_DASHBOARD_PORT}/api/serve/applications/"
        return _ask(url, {"Authorization": f"Bearer {self._token}"}, method, body)


def _ask(url: str, headers: dict[str, str], method: str = "GET", body: object = None) -> dict[str, Any] | None:
    content = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, content, {**headers, "Content-Type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            found: dict[str, Any] = json.loads(answer.read() or b"{}")
            return found
    except (urllib.error.URLError, OSError, ValueError):
        return None
