"""A node's end is foretold under load: is it left in time, and does any request fail?

    python -m benchmarks.node_drain [--streams 16] [--notice-s 20] [--untold] [--replicas 2]

Ray's head and two workers on this machine, each with an address of its own, and a Kubernetes API server of the tests'
that says they are pods. The demo model is served; then the node of the worker with most replicas gets the taint of the
cluster's autoscaler, and `notice-s` later its Ray gets SIGTERM; untold, it gets only that. To be run by hand with each
new version of Ray: how a node drains is no promise of Ray's.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.chaos.comparison import compare
from benchmarks.chaos.load import Load
from benchmarks.chaos.requests import make_requests
from benchmarks.free_port import find_free_port
from cluster.config_source import load_config
from cluster.drain_times import drain_times
from cluster.launch.endpoints import Endpoints
from cluster.launch.processes import adopt_orphans, kill_descendants
from cluster.launch.ray_session import RaySession
from cluster.launch.start_checks import plan_start
from tests.kube.api_server import FakeApiServer
from tests.kube.kubeconfig import write_kubeconfig
from tests.kube.objects import CLUSTER, node, pod

_WORKERS = {"127.0.0.2": "worker-2", "127.0.0.3": "worker-3"}
_WAIT_S = 120.0
_REQUESTS = make_requests(20, max_tokens=48)


def main() -> None:
    """Run it and print what happened; exit with 1 if a request failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--notice-s", type=float, default=20.0, help="seconds from the taint to SIGTERM")
    parser.add_argument("--untold", action="store_true", help="SIGTERM without a taint before it")
    parser.add_argument("--replicas", type=int, default=2, help="routers, and replicas of each expert group")
    options = parser.parse_args()
    notice_s = None if options.untold else options.notice_s
    adopt_orphans()
    try:
        with tempfile.TemporaryDirectory(prefix="drain") as folder, FakeApiServer() as api:
            sys.exit(_run(Path(folder), api, options.streams, notice_s, options.replicas))
    finally:
        kill_descendants()


def _run(folder: Path, api: FakeApiServer, streams: int, notice_s: float | None, replicas: int) -> int:
    settings = load_config(
        assignments=[
            f"http.port={find_free_port()}",
            f"grpc.port={find_free_port()}",
            f"router.replicas={replicas}",
            f"experts.replicas_per_group={replicas}",
            "experts.host=null",
            "experts.warm_spares=0",
            "model.context_length=256",
        ]
    )
    os.environ |= {
        "KUBECONFIG": str(write_kubeconfig(folder, api.url)),
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "RAY_CLUSTER_NAME": CLUSTER,
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(drain_times(settings.limits.drain_s).drain_s),
    }
    endpoints = Endpoints(http_host=settings.http.host, http_port=settings.http.port, grpc_port=settings.grpc.port)
    for address, name in _WORKERS.items():
        api.put("nodes", node(f"node-of-{name}"))
        api.put("pods", pod(name, f"node-of-{name}", address))
    session = RaySession(folder, keeps_spares=False)
    session.start_ray()
    try:
        with _workers() as processes:
            session.start_serve()
            session.deploy(plan_start(settings))
            _wait(lambda: session.is_deployed() and endpoints.answer())
            return _drain_under_load(api, settings.grpc.port, processes, streams, notice_s)
    finally:
        session.stop()


@contextmanager
def _workers() -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Start the workers; yield their processes by address."""
    import ray

    head = ray.get_runtime_context().gcs_address
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=2", f"--address={head}"]
    store = f"--object-store-memory={100 * 1024**2}"
    processes: dict[str, subprocess.Popen[bytes]] = {}
    for address in _WORKERS:  # one after the other: both at once, on one machine, get in each other's way
        processes[address] = subprocess.Popen(
            [*command, store, f"--node-ip-address={address}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        _wait(lambda: sum(each["Alive"] for each in ray.nodes()) == 1 + len(processes))
    yield processes


def _drain_under_load(
    api: FakeApiServer, port: int, processes: dict[str, subprocess.Popen[bytes]], streams: int, notice_s: float | None
) -> int:
    from cluster.ray_nodes import draining_nodes

    reference = Load(port, _REQUESTS, streams).run_each_once()
    address = max(_WORKERS, key=lambda each: len(_replicas_at(each)))
    print(f"replicas: { {each: _replicas_at(each) for each in ('head', *_WORKERS)} }")
    load = Load(port, _REQUESTS, streams)
    load.start()
    _wait(lambda: sum(len(record.token_ids) for record in list(load.records)) > 200)
    if notice_s is not None:
        began = time.monotonic()
        api.put("nodes", node(f"node-of-{_WORKERS[address]}", "ToBeDeletedByClusterAutoscaler=1"))
        _wait(lambda: bool(draining_nodes()))
        drain_began_s = time.monotonic() - began
        print(f"taint to drain begun: {drain_began_s:.2f} s")
        assert drain_began_s < 2, "expected the drain to begin within 2 s"
        while (waited_s := time.monotonic() - began) < notice_s and _replicas_at(address):
            time.sleep(0.1)
        print(f"{len(_replicas_at(address))} replicas left there {waited_s:.1f} s after the taint")
        time.sleep(max(notice_s - waited_s, 0))
    processes[address].send_signal(signal.SIGTERM)
    told_at = time.monotonic()
    processes[address].wait(_WAIT_S)
    print(f"the worker ended {time.monotonic() - told_at:.1f} s after SIGTERM")
    _wait(lambda: all(each.endswith(":RUNNING") for host in ("head", *_WORKERS) for each in _replicas_at(host)))
    print(f"everything runs again {time.monotonic() - told_at:.1f} s after SIGTERM")
    load.stop()
    differences = compare(load.records, reference)
    failed = [record.error for record in load.records if record.error]
    print(f"requests: {len(load.records)}, failed: {len(failed)} {failed[:3]}, {differences}")
    print(f"replicas: { {each: _replicas_at(each) for each in ('head', *_WORKERS)} }")
    return int(bool(failed))


def _replicas_at(address: str) -> list[str]:
    """Return the deployments that have a process there; `head`: at none of the workers."""
    import ray
    from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

    from cluster.names import APP
    from cluster.replica_roster import read_details

    controller = ray.get_actor(SERVE_CONTROLLER_NAME, namespace=SERVE_NAMESPACE)
    replicas = read_details(ray.get(controller.get_serve_instance_details.remote(), timeout=10), APP)
    return [
        f"{each.deployment}:{each.state}"
        for each in replicas
        if (each.host not in _WORKERS if address == "head" else each.host == address)
    ]


def _wait(holds: Callable[[], bool]) -> None:
    give_up_at = time.monotonic() + _WAIT_S
    while not holds():
        if time.monotonic() > give_up_at:
            sys.exit(f"it did not come to that within {_WAIT_S:g} s")
        time.sleep(0.05)


if __name__ == "__main__":
    main()
