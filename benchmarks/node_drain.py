"""A pod of each kind is ended under load: does any request fail?

    python -m benchmarks.node_drain                                           the demo's defaults: one pod of a kind
    python -m benchmarks.node_drain --two                                     two of each
    python -m benchmarks.node_drain --two --end router --notice-s 20          its node gets a taint 20 s before
    python -m benchmarks.node_drain --set workers.routers.replicas=2 --end router        a spare pod

Runs what the chart renders, in pods on this machine (`benchmarks/pods`): Ray as KubeRay starts it, the application as
it deploys it, each pod ended as a kubelet does and replaced when it is gone. Streams go through connections that stay,
by gRPC; newcomers come by HTTP, each on a connection of its own, without a second attempt. To be run by hand with each
new version of Ray: how a node drains is no promise of Ray's.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.chaos.comparison import compare
from benchmarks.chaos.load import Load
from benchmarks.chaos.record import StreamRecord
from benchmarks.chaos.requests import make_requests
from benchmarks.pods.cluster import PodCluster
from benchmarks.pods.newcomers import Newcomers, visit
from benchmarks.pods.pod import HOST, Pod, make_network
from benchmarks.pods.rendered import render_release
from tests.kube.api_server import FakeApiServer

_INSIDE = "HERD_NODE_DRAIN_INSIDE"
_TWO = (
    "settings.scaling.front_door_min_replicas=2",
    "settings.scaling.front_door_max_replicas=2",
    "settings.router.replicas=2",
    "settings.experts.replicas_per_group=2",
    "settings.experts.groups=1",
)
_TAINT = "ToBeDeletedByClusterAutoscaler=1"
_NOTICED_S = 2.0
"""Seconds from a taint to the beginning of a drain, at most."""
_REQUESTS = make_requests(20, max_tokens=48)
_COLUMNS = ("ended", "pods", "notice", "streams", "failed", "tokens that differ", "newcomers", "turned away", "after")


def main() -> None:
    """Run it and print a table; exit with 1 if a request failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--end", nargs="+", default=["front-door", "router", "experts"], help="groups, in turn")
    parser.add_argument("--two", action="store_true", help="two front doors, routers, copies of one expert group")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for helm")
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--notice-s", type=float, help="seconds from a taint of the node to SIGTERM")
    parser.add_argument("--folder", type=Path, help="keeps the pods' files")
    options = parser.parse_args()
    if _INSIDE not in os.environ:
        sys.exit(_run_inside())
    make_network()
    with tempfile.TemporaryDirectory(prefix="drain") as folder:
        sys.exit(_run(options, options.folder or Path(folder)))


def _run_inside() -> int:
    """Run this program again where only it and its pods are: whatever happens, nothing is left of them."""
    spaces = ["--net", "--pid", "--mount", "--fork", "--kill-child", "--mount-proc"]
    command = ["unshare", *spaces, sys.executable, "-m", "benchmarks.node_drain", *sys.argv[1:]]
    return subprocess.run(command, env=os.environ | {_INSIDE: "1"}, check=False).returncode


def _run(options: argparse.Namespace, folder: Path) -> int:
    release = render_release([*(_TWO if options.two else ()), *options.set])
    with FakeApiServer(host=HOST) as api, PodCluster(release, api, folder) as cluster:
        reference = Load(release.grpc_port, _REQUESTS, options.streams).run_each_once()
        answer = visit(HOST, release.http_port).answer
        assert answer, "expected an answer to compare others with"
        rows = []
        for group in options.end:
            trial = _Trial(cluster, group, options.streams, release.grpc_port, release.http_port)
            rows.append(trial.run(reference, answer, options.notice_s))
    for row in (_COLUMNS, ["---"] * len(_COLUMNS), *rows):
        print("| " + " | ".join(map(str, row)) + " |")
    return int(any(row[4] or row[7] for row in rows))


class _Trial:
    """The end of one pod."""

    def __init__(self, cluster: PodCluster, group: str, streams: int, grpc_port: int, http_port: int) -> None:
        self._cluster = cluster
        self._group = group
        self._num_pods = len(cluster.pods(group))
        self._load = Load(grpc_port, _REQUESTS, streams)
        self._newcomers = Newcomers(HOST, http_port)

    def run(self, reference: Sequence[StreamRecord], answer: str, notice_s: float | None) -> Sequence[object]:
        """Return a row of the table."""
        pod = next(each for each in self._cluster.pods(self._group) if self._cluster.replicas_of(each))
        self._load.start()
        with self._newcomers:
            self._wait_for_tokens(200)
            if notice_s is not None:
                self._notify(pod, notice_s)
            began = time.monotonic()
            took_s = self._cluster.delete(pod)
            print(f"{pod.name} ended {took_s:.1f} s after SIGTERM", flush=True)
            self._cluster.wait(lambda: self._cluster.is_whole)
            print(f"everything runs again {time.monotonic() - began:.1f} s after SIGTERM", flush=True)
            self._wait_for_tokens(200)
        self._load.stop()
        found = compare(self._load.records, reference)
        print(found.describe())
        visits, away = self._newcomers.visits, self._newcomers.turned_away
        others = [each for each in visits if not each.problem and each.answer != answer]
        for each in [*away[:3], *away[-2:], *others[:2]]:
            said = each.problem or each.answer
            print(f"newcomer {each.at_s - began:+.1f} s after SIGTERM, for {each.took_s:.1f} s: {said}")
        print(f"the longest visit took {max(each.took_s for each in visits):.1f} s", flush=True)
        notice = "none" if notice_s is None else f"{notice_s:g} s"
        differ = found.lost + found.duplicated + found.changed + len(others)
        counts = [found.streams, found.failed, differ, len(visits), len(away)]
        return [self._group, self._num_pods, notice, *counts, f"{took_s:.1f} s"]

    def _notify(self, pod: Pod, notice_s: float) -> None:
        """Taint a pod's node, and wait."""
        began = time.monotonic()
        self._cluster.taint(pod, _TAINT)
        self._cluster.wait(lambda: self._cluster.drains(pod))
        drains_after_s = time.monotonic() - began
        print(f"taint to drain begun: {drains_after_s:.2f} s", flush=True)
        assert drains_after_s < _NOTICED_S, f"expected the drain to begin within {_NOTICED_S:g} s"
        while (waited_s := time.monotonic() - began) < notice_s and self._cluster.replicas_of(pod):
            time.sleep(0.1)
        print(f"{len(self._cluster.replicas_of(pod))} replicas left there {waited_s:.1f} s after the taint", flush=True)
        time.sleep(max(notice_s - waited_s, 0))

    def _wait_for_tokens(self, num_tokens: int) -> None:
        goal = self._num_tokens() + num_tokens
        self._cluster.wait(lambda: self._num_tokens() >= goal)

    def _num_tokens(self) -> int:
        return sum(len(record.token_ids) for record in list(self._load.records))


if __name__ == "__main__":
    main()
