"""A release of the chart on this machine: helm renders it, the local operator keeps its RayCluster, Herd runs in it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.free_port import find_free_port
from tests.certificates import Authority
from tests.chart.chart import only, profile, render
from tests.kube.api_server import FakeApiServer
from tests.kube.kubeconfig import write_kubeconfig
from tests.kube.local_operator import Access, LocalOperator, ray_cluster
from tests.kube.objects import CLUSTER, NAMESPACE

_MOUNTED = "/etc/herd/"
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class LocalRelease:
    """What runs."""

    api: FakeApiServer
    """Where its pods can be seen."""
    operator: LocalOperator
    """Who makes them."""
    http_port: int
    """Of its OpenAI API, on this machine."""
    grpc_port: int
    """Of its gRPC API."""

    @property
    def base_url(self) -> str:
        """Return where its HTTP port is."""
        return f"http://localhost:{self.http_port}"

    def pods(self, *groups: str) -> list[str]:
        """Return the pods of some worker groups, those that end too."""
        return [name for group in groups for name in self.api.names("pods", f"ray.io/group={group}")]

    def set_idle_timeout(self, seconds: int) -> None:
        """Change how long a pod without a replica stays, where the chart says it."""
        path = "/spec/autoscalerOptions/idleTimeoutSeconds"
        self.api.patch("rayclusters", CLUSTER, NAMESPACE, [{"op": "replace", "path": path, "value": seconds}])

    def wait_for(self, condition: Callable[[], bool], timeout_s: float, what: str) -> float:
        """Return how many seconds it took until something holds; fail if it does not, or if a vital process ends."""
        began = time.monotonic()
        while not condition():
            self.operator.check()
            if time.monotonic() > began + timeout_s:
                raise AssertionError(
                    f"expected {what} within {timeout_s:g} s\n{self.operator.log('autoscaler')[-3000:]}"
                )
            time.sleep(_POLL_S)
        return time.monotonic() - began


@contextmanager
def local_release(values: Mapping[str, Any]) -> Iterator[LocalRelease]:
    """Install the demo with other values; Ray Serve has its configuration when this yields, and pods are on their way.

    Args:
        values: of the chart.
    """
    http_port, grpc_port = find_free_port(), find_free_port()
    # Short names: there will be sockets below.
    with tempfile.TemporaryDirectory(prefix="k") as name:
        folder = Path(name)
        file = folder / "values.yaml"
        file.write_text(yaml.safe_dump(dict(values)))
        ports = (f"--set=settings.http.port={http_port}", f"--set=settings.grpc.port={grpc_port}")
        objects = render(f"--values={profile('demo-cpu')}", f"--values={file}", *ports)
        service = only(objects, "RayService")
        (folder / "herd.yaml").write_text(only(objects, "ConfigMap")["data"]["herd.yaml"])
        serve_config = folder / "serve.yaml"
        serve_config.write_text(service["spec"]["serveConfigV2"].replace(_MOUNTED, f"{folder}/"))
        authority = Authority(folder)
        identity = authority.sign("api")
        with FakeApiServer(identity) as api:
            api.put("rayclusters", ray_cluster(service, CLUSTER, NAMESPACE))
            kubeconfig = write_kubeconfig(folder, api.url, authority.ca)
            access = Access(identity=identity, ca=authority.ca, kubeconfig=kubeconfig)
            with LocalOperator(api=api, cluster=CLUSTER, namespace=NAMESPACE, folder=folder, access=access) as operator:
                operator.deploy(serve_config)
                yield LocalRelease(api=api, operator=operator, http_port=http_port, grpc_port=grpc_port)
