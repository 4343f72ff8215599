"""How long do pods take to come and go, and does a request fail meanwhile?

    python -m benchmarks.pod_scaling [--streams 8]

The chart's RayCluster on this machine, with Ray's own KubeRay autoscaler. A pod is a Ray node started here, so no
scheduler's and no image's time is in it. From nothing to the first token, then a node that the cluster's autoscaler is
about to remove, then back to nothing. To be run by hand with each new version of Ray.
"""

from __future__ import annotations

import argparse
import sys
import time

from benchmarks.chaos.comparison import Differences, compare
from benchmarks.chaos.load import Load
from benchmarks.chaos.requests import make_requests
from tests.kube.local_release import LocalRelease, local_release
from tests.kube.objects import node

_WAIT_S = 400.0
_REQUESTS = make_requests(20, max_tokens=48)
_SCALED = ("router", "experts")
_VALUES = {
    "settings": {
        "experts": {"groups": 1},
        "scaling": {"router_min_replicas": 0, "experts_min_replicas": 0, "zero_after_s": 1},
    },
    "autoscaling": {"enabled": True, "idleTimeoutSeconds": 60},
}


def main() -> None:
    """Run it and print a table; exit with 1 if a request failed or was answered otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=8)
    streams = parser.parse_args().streams
    with local_release(_VALUES) as release:
        reference = Load(release.grpc_port, _REQUESTS, streams, _WAIT_S).run_each_once()
        release.set_idle_timeout(1)
        release.wait_for(lambda: not release.pods(*_SCALED), _WAIT_S, "no pod without requests")
        load = Load(release.grpc_port, _REQUESTS, streams, _WAIT_S)
        print("| what | pods asked for after | done after |\n|---|---|---|")
        _wake(release, load)
        _leave_node(release)
        load.stop()
        gone_s = release.wait_for(lambda: not release.pods(*_SCALED), _WAIT_S, "no pod when requests have ended")
        print(f"| from the last request to no pod | | {gone_s:.1f} s |")
    differences: Differences = compare(load.records, reference)
    print(f"\n{differences.describe()}")
    sys.exit(not differences.is_clean)


def _wake(release: LocalRelease, load: Load) -> None:
    """Begin with requests where there is no router."""
    load.start()
    asked_s = release.wait_for(lambda: len(release.pods(*_SCALED)) == len(_SCALED), _WAIT_S, "a pod of each")
    more_s = release.wait_for(lambda: any(each.arrivals for each in load.records), _WAIT_S, "a first token")
    print(f"| from nothing to the first token | {asked_s:.1f} s | {asked_s + more_s:.1f} s |")


def _leave_node(release: LocalRelease) -> None:
    """Foretell the end of the only pod with experts."""
    [old] = release.pods("experts")
    began = time.monotonic()
    release.api.put("nodes", node(f"node-of-{old}", "ToBeDeletedByClusterAutoscaler=1"))
    asked_s = release.wait_for(lambda: len(release.pods("experts")) == 2, _WAIT_S, "a pod beside the one that goes")
    release.wait_for(lambda: old not in release.pods("experts"), _WAIT_S, "the pod to be gone")
    print(
        f"| from a taint of the experts' node to its pod's end | {asked_s:.1f} s | {time.monotonic() - began:.1f} s |"
    )


if __name__ == "__main__":
    main()
